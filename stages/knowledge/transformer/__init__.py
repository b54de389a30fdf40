"""Knowledge in the attentions and hidden states of encoders."""
