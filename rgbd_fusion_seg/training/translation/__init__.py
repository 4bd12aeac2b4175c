"""Image-to-image translation between domains of one view (CEN §4.2, AsymFusion §4.3)."""
