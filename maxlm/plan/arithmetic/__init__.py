"""A plan without a compiler: state bytes exactly, the rest by a roofline."""
