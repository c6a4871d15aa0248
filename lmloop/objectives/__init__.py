"""What is minimised: named terms of sums and counts."""
