"""Events go out: claim a delivery, build its request, send it to an allowed address, decide what follows."""
