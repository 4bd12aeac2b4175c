"""Makes engines and fused graphs of bundles; what runs them is in ``engine``."""
