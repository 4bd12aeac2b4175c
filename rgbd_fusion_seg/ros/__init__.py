"""The ROS 2 edge of the package: the only place that knows rclpy and message types.

``node`` is the lifecycle node; while it is active, ``stream`` wires the parts together:
``synchroniser`` pairs colour with depth, ``worker`` keeps the newest pair and runs ``pipeline`` on
a thread of its own, ``images`` turns messages into arrays and back, ``camera_pose`` asks TF,
``publishers`` sends the results, ``single_sensor`` says which camera is lost, ``diagnostics``
counts and complains. ``parameters`` declares every setting, ``engine_builder`` makes a missing
engine beside the work, ``process`` gives a node's process its beginning and end, ``commands``
starts it.
``synthetic_camera`` publishes a rendered room as a camera would; ``recorder`` writes down what
the node answers.
"""
