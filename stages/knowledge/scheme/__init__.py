"""Learning without a finished teacher: from peers, from auxiliary heads, from a network's own earlier outputs."""
