"""What the gate's measures are called, in reports and receipts."""

CHANGE = "change of the rows' losses"
ACCURACY = "memorization accuracy"
CONFIDENCE = "confidence"
EXTRACTION = "extraction likelihood"
WORST = "extraction likelihood of the worst row"
ROUGE = "ROUGE-L recall of the answers"
MEMBERSHIP = "membership AUC"
FORGET_QUALITY = "forget quality"
TRUTH_RATIO = "truth ratio"
RELEARNING = "steps to learn the rows again"
KEPT_ACCURACY = "accuracy on rows that stay"
KEPT_LOSS = "loss on rows that stay"
UTILITY = "model utility"
HELD_OUT_ACCURACY = "accuracy on held-out rows"

MEASURES = (
    CHANGE,
    ACCURACY,
    CONFIDENCE,
    EXTRACTION,
    WORST,
    ROUGE,
    MEMBERSHIP,
    FORGET_QUALITY,
    TRUTH_RATIO,
    RELEARNING,
    KEPT_ACCURACY,
    KEPT_LOSS,
    UTILITY,
    HELD_OUT_ACCURACY,
)
"""All of them."""
