"""Networks: a state of visible frames in, a prediction out."""
