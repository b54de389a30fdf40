"""Knowledge in the teacher's outputs."""

from torch import Tensor
from torch.nn import functional


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(σ(z_t/T) ‖ σ(z_s/T)), summed over classes and averaged over the batch; logits (B, C) in, a scalar out.

    Hinton et al. 2015, arXiv 1503.02531. T² keeps the gradients' size independent of the temperature; the mean is over
    samples only, not over samples and classes, which would weaken the term by the number of classes.
    """
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
