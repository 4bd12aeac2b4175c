"""Recorded input without ROS: image folders, bags, and what is made and measured from them."""
