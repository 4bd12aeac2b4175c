"""Writes bags as a camera does, with the plain rosbags API: nothing shared with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Rosbag2Writer
from rosbags.typesys import Stores, get_typestore

from .conftest import HEIGHT, WIDTH, frame_pixels

PERIOD_NS = 33_333_333


class Camera:
    """An open bag, and messages for it."""

    def __init__(self, path: Path, storage: str = 'mcap') -> None:
        self.ros1 = storage == 'ros1'
        self.store = get_typestore(Stores.ROS1_NOETIC if self.ros1 else Stores.ROS2_HUMBLE)
        if self.ros1:
            self.writer = Rosbag1Writer(path)
        else:
            plugin = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}[storage]
            self.writer = Rosbag2Writer(path, version=8, storage_plugin=plugin)
        self.connections = {}
        self.received_ns = 10**9

    def __enter__(self):
        self.writer.open()
        return self

    def __exit__(self, *_):
        self.writer.close()

    def header(self, stamp_ns: int, frame_id: str = 'optical'):
        sec, nanosec = divmod(stamp_ns, 10**9)
        stamp = self.store.types['builtin_interfaces/msg/Time'](sec=sec, nanosec=nanosec)
        extra = {'seq': 0} if self.ros1 else {}
        header = self.store.types['std_msgs/msg/Header']
        return header(stamp=stamp, frame_id=frame_id, **extra)

    def advertise(self, topic: str, kind: str):
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)

    def write(self, topic: str, kind: str, message=None, raw: bytes | None = None):
        self.advertise(topic, kind)
        if raw is None:
            serialize = self.store.serialize_ros1 if self.ros1 else self.store.serialize_cdr
            raw = bytes(serialize(message, kind))
        # Bags are read in the order of reception, which says nothing about the stamps.
        self.received_ns += 1_000_000
        self.writer.write(self.connections[topic], self.received_ns, raw)

    def image(self, topic, stamp_ns, pixels, encoding, padding=0, big=False, **changes):
        stored = pixels.astype(pixels.dtype.newbyteorder('>' if big else '<'))
        rows = np.ascontiguousarray(stored).view(np.uint8).reshape(pixels.shape[0], -1)
        rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
        fields = {
            'header': self.header(stamp_ns),
            'height': pixels.shape[0],
            'width': pixels.shape[1],
            'encoding': encoding,
            'is_bigendian': int(big),
            'step': rows.shape[1],
            'data': rows.ravel(),
        }
        message = self.store.types['sensor_msgs/msg/Image'](**{**fields, **changes})
        self.write(topic, 'sensor_msgs/msg/Image', message)

    def compressed(self, topic, stamp_ns, data: bytes, kind: str):
        message = self.store.types['sensor_msgs/msg/CompressedImage'](
            header=self.header(stamp_ns), format=kind, data=np.frombuffer(data, np.uint8)
        )
        self.write(topic, 'sensor_msgs/msg/CompressedImage', message)

    def disparity(self, topic, stamp_ns, disparity, focal=30.0, baseline=0.1):
        types = self.store.types
        image = types['sensor_msgs/msg/Image'](
            header=self.header(stamp_ns),
            height=disparity.shape[0],
            width=disparity.shape[1],
            encoding='32FC1',
            is_bigendian=0,
            step=disparity[0].nbytes,
            data=disparity.view(np.uint8).ravel(),
        )
        message = types['stereo_msgs/msg/DisparityImage'](
            header=self.header(stamp_ns),
            image=image,
            f=focal,
            valid_window=types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False),
            min_disparity=0.0,
            max_disparity=64.0,
            delta_d=0.125,
            **{'T' if self.ros1 else 't': baseline},
        )
        self.write(topic, 'stereo_msgs/msg/DisparityImage', message)

    def info(self, topic, stamp_ns, focal=30.0, width=WIDTH):
        k = np.array([focal, 0, 15.5, 0, focal, 11.5, 0, 0, 1])
        p = np.insert(k.reshape(3, 3), 3, 0, axis=1).ravel()
        names = ('D', 'K', 'R', 'P') if self.ros1 else ('d', 'k', 'r', 'p')
        arrays = dict(zip(names, (np.zeros(5), k, np.eye(3).ravel(), p), strict=True))
        roi = self.store.types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
        message = self.store.types['sensor_msgs/msg/CameraInfo'](
            header=self.header(stamp_ns),
            height=HEIGHT,
            width=width,
            distortion_model='plumb_bob',
            binning_x=0,
            binning_y=0,
            roi=roi,
            **arrays,
        )
        self.write(topic, 'sensor_msgs/msg/CameraInfo', message)


COLOUR, DEPTH, INFO = '/cam/rgb/image_raw', '/cam/depth_registered/image', '/cam/rgb/camera_info'


def stamp(index: int) -> int:
    return 10**9 + index * PERIOD_NS


def write_pair(camera: Camera, index: int, depth_delay_ns: int = 0, **image) -> None:
    rgb, depth = frame_pixels(index)
    camera.image(COLOUR, stamp(index), rgb, 'rgb8', **image)
    camera.image(DEPTH, stamp(index) + depth_delay_ns, depth, '16UC1', **image)
