"""The two ways a trial can be refused."""


class InputError(ValueError):
    """Bad input: the message is one sentence saying what is wrong, the rule and the mend."""


class InfeasibleError(Exception):
    """A recipe that cannot be realised on this backbone; the message names the layer or the limit.

    An outcome of a trial, not a fault: it is recorded, told to the search, and never retried.
    """

    def __init__(self, reason: str, *, spent_flops: float = 0.0) -> None:
        super().__init__(reason)
        self.spent_flops = spent_flops
        """Training FLOPs executed before it was found out."""
