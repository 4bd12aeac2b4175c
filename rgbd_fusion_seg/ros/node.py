"""``segmentation_node``: colour, depth and CameraInfo topics in, labels and overlays out.

A lifecycle node. Configuring loads the network, activating subscribes, deactivating stops,
cleaning up frees the network; with ``autostart`` (the default) it does the first two by itself.
Messages are received on the executor's thread, which only hands the newest pair over; inference
and publishing run on a thread of their own.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

from rgbd_fusion_seg import kernels
from rgbd_fusion_seg.bundle import ModelBundle, load_bundle
from rgbd_fusion_seg.engine import StepDown
from rgbd_fusion_seg.errors import EngineError, RgbdFusionSegError
from rgbd_fusion_seg.ros import diagnostics, single_sensor
from rgbd_fusion_seg.ros.diagnostics import ERROR, OK, WARN, Health, Problem, Rates
from rgbd_fusion_seg.ros.engine_builder import EngineBuilder, build_is_due
from rgbd_fusion_seg.ros.parameters import (
    SegmentationConfig,
    declare_parameters,
    parameter_names,
    read_parameters,
    unknown_parameters,
    unknown_qos_overrides,
    wrong_choices,
)
from rgbd_fusion_seg.ros.pipeline import Topics
from rgbd_fusion_seg.ros.process import run_node
from rgbd_fusion_seg.ros.publishers import (
    SegmentationPublishers,
    qos_fits,
    qos_overrides,
    told_overrides,
)
from rgbd_fusion_seg.ros.stream import COLOR_TOPIC, DEPTH_TOPIC, INFO_TOPIC, Stream
from rgbd_fusion_seg.segmenter import Segmenter

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE


class SegmentationNode(LifecycleNode):
    """Wires subscriptions, synchroniser, segmenter, publishers and diagnostics together."""

    def __init__(self) -> None:
        super().__init__('segmentation_node')
        # It is read once, at start.
        declare_parameters(self, SegmentationConfig, read_only={'autostart'})
        self._unknown_parameters = unknown_parameters(self)
        self.config = read_parameters(self, SegmentationConfig)
        self.topics = Topics(
            color=self.resolve_topic_name(COLOR_TOPIC),
            depth=self.resolve_topic_name(DEPTH_TOPIC),
            info=self.resolve_topic_name(INFO_TOPIC),
        )
        self.health = Health(self.log)
        self._rates = Rates()
        self._segmenter: Segmenter | None = None
        self._builder: EngineBuilder | None = None
        self._outputs: SegmentationPublishers | None = None
        self._stream: Stream | None = None
        self._hanging: Stream | None = None
        self._topics_of_misfits: set[str] = set()
        with told_overrides('/diagnostics.publisher'):
            self._diagnostics = self.create_publisher(
                DiagnosticArray,
                '/diagnostics',
                QoSProfile(depth=5),
                qos_overriding_options=qos_overrides(),
            )
        self.add_on_set_parameters_callback(self._allow_parameters)
        # A steady clock: with use_sim_time and no /clock, silence must still be reported.
        self._report_timer = self.create_timer(
            self.config.output.diagnostics_period_s,
            self._report,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def start(self) -> None:
        """Configure and activate, if the parameter ``autostart`` says so.

        Raises:
            EngineError: it could not be configured; the reason was logged.
        """
        if not self.config.autostart:
            return
        for transition in (self.trigger_configure, self.trigger_activate):
            result = transition()
            if not self.context.ok():
                return  # shut down meanwhile
            if result != SUCCESS:
                raise EngineError('segmentation_node could not start; the reason is given above')

    @contextmanager
    def _reports_meanwhile(self) -> Iterator[None]:
        """Publish a status from a thread, for nothing spins while the node is configured."""
        ended = threading.Event()

        def report() -> None:
            while not ended.is_set():
                try:
                    self._publish_status('starting: loading kernels and the network', {}, [])
                except Exception:
                    if self.context.ok():
                        raise
                    return
                ended.wait(self.config.output.diagnostics_period_s)

        thread = threading.Thread(target=report, name='report', daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stop(self) -> None:
        """Stop the inference thread and free the network, in whatever state the node is."""
        self._deactivate()
        self._cleanup()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the network and create the publishers."""
        with self._reports_meanwhile():
            configured = self._attempt('configure', self._configure)
        if not configured:
            self._cleanup()
            return FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the inference thread."""
        result = super().on_activate(state)
        if not self._attempt('activate', self._activate):
            self._deactivate()
            super().on_deactivate(state)
            return FAILURE
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop the inference thread."""
        self._deactivate()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the network."""
        self._cleanup()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything."""
        self.stop()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured anew."""
        self.stop()
        return super().on_error(state)

    def _attempt(self, name: str, action: Callable[[], None]) -> bool:
        """Run the body of a transition; say why it failed, for rclpy swallows exceptions."""
        try:
            action()
        except RgbdFusionSegError as error:
            self.health.complain(name, f'cannot {name}: {error}', ERROR, sticky=True)
        except Exception:
            sentence = f'cannot {name}: {traceback.format_exc()}'
            self.health.complain(name, sentence, ERROR, sticky=True)
        else:
            return True
        return False

    def _configure(self) -> None:
        self.health.clear()
        self.config = config = read_parameters(self, SegmentationConfig)
        self._report_timer.timer_period_ns = round(config.output.diagnostics_period_s * 1e9)
        self._report_timer.reset()
        bundle = load_bundle(config.engine.bundle)
        began_s = time.monotonic()
        self.get_logger().info(
            'loading kernels (compiled once per installation, which takes up to a minute)'
        )
        kernels.warm_up()
        preload = config.single_sensor.preload
        self._segmenter = self._open_segmenter(bundle, self._tell_step_down, preload)
        self._segmenter.warm_up()
        if config.engine.build == 'background' and build_is_due(self._segmenter.step_downs):
            self._builder = EngineBuilder(
                self._segmenter,
                lambda: self._open_segmenter(bundle, lambda _: None),
                config.engine.build_options,
                config.engine.device,
                self.log,
            )
        self._outputs = SegmentationPublishers(
            self, bundle, config.output, self.complain_about_qos
        )
        self.get_logger().info(
            f'{bundle.name} runs on {self._segmenter.engine_name}, '
            f'ready after {time.monotonic() - began_s:.1f} s'
        )

    def _open_segmenter(
        self,
        bundle: ModelBundle,
        on_step_down: Callable[[StepDown], None],
        preload_single_sensor: bool = False,
    ) -> Segmenter:
        config = self.config
        return Segmenter(
            bundle,
            backend=config.engine.backend,
            min_confidence=config.output.min_confidence,
            input_size=config.engine.input_size,
            on_step_down=on_step_down,
            preload_single_sensor=preload_single_sensor,
            **config.engine.options,
        )

    def _tell_step_down(self, step_down: StepDown) -> None:
        sentence = str(step_down)
        if self._segmenter is not None and step_down in self._segmenter.step_downs:
            # It failed while it ran; what answers from one sensor alone has an engine of its own.
            sentence += f'; {self._segmenter.engine_name} takes over'
        self.log(WARN if step_down.unexpected else OK, sentence)

    def _activate(self) -> None:
        if self._hanging is not None and self._hanging.is_at_work:
            raise EngineError(
                f'the network still works on a frame of before on {self._segmenter.engine_name}; '
                'try again later, or clean up and configure the node to load it anew'
            )
        self._hanging = None
        # Outputs are there since the node was configured, and misfits of theirs are told once.
        self.health.clear(keep={f'qos {topic}' for topic in self._topics_of_misfits})
        self._rates = Rates()
        self._stream = Stream(self, self._segmenter, self._outputs)
        self._unknown_parameters = self._unknown_parameters | unknown_qos_overrides(self)
        self._outputs.publish_label_info()
        if self._builder is not None:
            self._builder.start()
        self.get_logger().info(
            f'waiting for {self.topics.color}, {self.topics.depth} and {self.topics.info} '
            f'(paired by {self._stream.sync.matcher_name})'
        )

    def _deactivate(self) -> None:
        if self._builder is not None and not self._builder.stop():
            self.health.complain('stop', 'opening the engine hangs; its thread is left', ERROR)
        if self._stream is not None:
            self._stream.close()
            if self._stream.is_at_work:
                self._hanging = self._stream
            self._stream = None

    def _cleanup(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        self._builder = None
        if self._segmenter is not None:
            # What hangs in it would work on with freed memory; it is freed when it comes back.
            if self._hanging is None or not self._hanging.is_at_work:
                self._segmenter.close()
            self._segmenter = self._hanging = None

    def _allow_parameters(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        """Refuse changes that could have no effect, instead of accepting them in silence."""
        ours = parameter_names(SegmentationConfig)
        late = [p.name for p in parameters if p.name in ours]
        if not late or self._segmenter is None:
            wrong = wrong_choices(SegmentationConfig, {p.name: p.value for p in parameters})
            return SetParametersResult(successful=not wrong, reason='; '.join(wrong))
        return SetParametersResult(
            successful=False,
            reason=f'{", ".join(late)} is read when the node is configured: deactivate and clean '
            'it up, set the parameter, then configure and activate it',
        )

    def _report(self) -> None:
        """Publish a DiagnosticArray; complain first when no pair comes."""
        values: dict[str, str] = {}
        ok_message, step_downs, losses = 'inactive', (), []
        for topic in self._topics_of_misfits:
            self.health.show(f'qos {topic}', not qos_fits(self, topic))
        if self._segmenter is not None:
            values['engine'] = self._segmenter.engine_name
            values['bundle'] = self._segmenter.bundle.name
            for sensor, engine in self._segmenter.engine_names_alone.items():
                values[f'engine for {single_sensor.NAMES[sensor]} alone'] = engine
            step_downs = self._segmenter.step_downs
            values |= diagnostics.step_down_values(step_downs)
        if self._builder is not None:
            values['engine build'] = self._builder.progress
        if self._stream is not None:
            self._stream.complain_about_silence()
            self._complain_about_rivals()
            values |= self._rates.update(self._stream.counters())
            bundle, sync = self._segmenter.bundle, self._stream.sync
            values |= diagnostics.synchroniser_values(sync)
            if not self._stream.lacks_calibration:  # nothing comes out then, and that is told
                values |= single_sensor.loss_values(bundle, sync)
                losses = single_sensor.loss_problems(bundle, sync)
            ok_message = f'{values["masks Hz"]} masks/s'
            if self.config.output.lazy and not self._outputs.wanted():
                ok_message = 'idle: nobody subscribes to segmentation/*'
        problems = losses + diagnostics.step_down_problems(step_downs)
        self._publish_status(ok_message, values, problems)

    def _publish_status(
        self, ok_message: str, values: dict[str, str], problems: list[Problem]
    ) -> None:
        """Publish a DiagnosticArray of these and what is always told."""
        unknown = self._unknown_parameters
        status = diagnostics.make_status(
            f'{self.get_fully_qualified_name()[1:]}: segmentation',
            values.get('engine', ''),
            self.health.problems() + problems + diagnostics.unknown_parameter_problems(unknown),
            ok_message,
            diagnostics.unknown_parameter_values(unknown) | values | self.health.snapshot(),
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _complain_about_rivals(self) -> None:
        if rivals := self._outputs.rivals():
            self.health.complain(
                'rivals',
                f'{self._outputs.mask.topic_name} is published by several nodes '
                f'({", ".join(rivals)}), whose masks mix; stop all but one or start each in a '
                'namespace of its own',
                log_period_s=inf,
            )

    def complain_about_qos(self, topic: str, sentence: str) -> None:
        """Note that a partner's QoS does not fit."""
        # The event comes once for each partner, so the complaint stays until the partner goes.
        self.health.complain(f'qos {topic}', sentence, sticky=True)
        self._topics_of_misfits.add(topic)

    def log(self, level: bytes, sentence: str) -> None:
        """Say something at the level of a diagnostic status."""
        if not self.context.ok():
            return
        if level == ERROR:
            self.get_logger().error(sentence)
        elif level == WARN:
            self.get_logger().warning(sentence)
        else:
            self.get_logger().info(sentence)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; returns the exit code."""
    return run_node(SegmentationNode, args)


if __name__ == '__main__':
    sys.exit(main())
