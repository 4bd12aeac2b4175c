"""The life of a node's process: start, spin, and an end that is clean whatever ends it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger

from rgbd_fusion_seg.errors import RgbdFusionSegError


class RunnableNode(Protocol):
    """What :func:`run_node` asks of a node besides being an ``rclpy.node.Node``."""

    def start(self) -> None:
        """Do what must be done before spinning; raise RgbdFusionSegError to end the process."""

    def stop(self) -> None:
        """Stop threads and free devices; the ROS context may be shut down already."""

    def destroy_node(self) -> None:
        """Destroy the ROS entities."""


def run_node(make_node: Callable[[], RunnableNode], args: Sequence[str] | None = None) -> int:
    """Make a node and spin it until SIGINT, SIGTERM or an error ends it.

    One thread spins: rclpy's multi-threaded executor drops images that this one delivers.

    Returns:
        The exit code: 0 after a signal or shutdown, 1 after an error of the user's making.
    """
    interrupt = _Interrupt()
    # Before rclpy's own handlers, which call this one.
    _handle_signals(interrupt)
    node = None
    try:
        _init(args)
        node = make_node()
        node.start()
        interrupt.raises = False
        if rclpy.ok():
            executor = SingleThreadedExecutor()
            executor.add_node(node)  # type: ignore[arg-type]
            executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (RgbdFusionSegError, ParameterException) as error:
        get_logger('rgbd_fusion_seg').fatal(str(error))
        return 1
    except Exception:
        # A signal during a ROS call leaves that call with an invalid context; that is no error.
        if rclpy.ok():
            raise
    finally:
        interrupt.raises = False
        if node is not None:
            node.stop()
            node.destroy_node()
        rclpy.try_shutdown()
        # An ignored signal stays ignored while the interpreter ends; a handled one would kill it.
        _handle_signals(signal.SIG_IGN)
    return 0


def _init(args: Sequence[str] | None) -> None:
    try:
        rclpy.init(args=args)
    except Exception as error:  # rclpy's exceptions about ROS arguments are not public
        sys.exit(f'ROS 2 cannot start: {error}')


def _handle_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


class _Interrupt:
    """Raises KeyboardInterrupt for a signal that comes before the node spins.

    After that rclpy's own handlers end the spinning; an exception could come anywhere in its code
    and leave half an object. Half objects of libraries that load are left too, and some complain
    when they are collected; this process ends, so nobody need hear it. Impatient users and launch
    send a second signal; it must not cut the clean end short.
    """

    raises = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.raises:
            self.raises = False
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt
