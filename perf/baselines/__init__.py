"""What ostinato is measured beside: small decoders of our own, made the way others make theirs."""
