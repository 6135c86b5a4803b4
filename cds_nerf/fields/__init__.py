"""What is edited, seen by a camera differentiably: ray fields, and the cameras that look at them."""
