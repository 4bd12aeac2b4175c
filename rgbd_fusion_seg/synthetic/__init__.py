"""Ray-cast furnished rooms with ground truth, and the sensor that would look at them."""
