"""When one result of a task is a failure that the gallery has to show."""

from cases import Scores

# At least, or at most, what a single result may have; a metric that is not here fails nobody.
AT_LEAST = {
    "objects": 1.0, "things": 1.0, "hits": 1.0, "success": 1.0, "iou": 0.7, "mask_iou": 0.7, "f1": 0.5, "gain_db": 2.0,
    "gain_over_copy_db": 0.0, "background_psnr": 20.0,
}  # fmt: skip
AT_MOST = {"abs_rel": 0.12, "reestimated_abs_rel": 0.18, "rotation_degrees": 16.0, "centre_error": 0.6}


def failure(scores: Scores) -> str:
    """Return the first metric that is out of bounds, with its value: "mask_iou 0.31"; "" if none is."""
    for metric, value in scores.items():
        if value < AT_LEAST.get(metric, float("-inf")) or value > AT_MOST.get(metric, float("inf")):
            return f"{metric} {value:.3g}"
    return ""
