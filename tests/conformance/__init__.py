"""What every store and queue must do, run against each of them."""
