"""The ROS 2 edge of the package: the only place that knows rclpy and message types.

``node`` wires the parts together: ``images`` turns messages into arrays and back,
``synchroniser`` pairs colour with depth and keeps the newest pair, ``worker`` runs inference on
its own thread, ``publishers`` sends the results, ``diagnostics`` counts and complains,
``parameters`` declares every setting. ``synthetic_camera`` publishes a rendered room as a camera
would.
"""
