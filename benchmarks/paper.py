"""Figures of the LlamBERT paper (Csanády et al., 2024, arXiv 2403.15938), IMDb, in %."""

# Test accuracy of each encoder: gold train, Llama-2-70b's labels of train, of train and extra
# (25,000 and 50,000 reviews), and its labels of extra followed by gold train.
COLUMNS = ("baseline", "llambert", "llambert + extra", "combined")
TABLE = {
    "distilbert-base": (91.23, 90.77, 92.12, 92.53),
    "bert-base": (92.35, 91.58, 92.76, 93.47),
    "bert-large": (94.29, 93.31, 94.07, 95.03),
    "roberta-base": (94.74, 93.53, 94.28, 95.23),
    "roberta-large": (96.54, 94.83, 94.98, 96.68),
}

# RoBERTa-large by training records: mean and half of the 95 % interval, 5 seeds.
CURVE = {
    "gold": {
        **{200: (94.07, 0.51), 400: (94.38, 0.52), 800: (94.76, 0.29), 1600: (95.21, 0.35)},
        **{3200: (95.49, 0.06), 6400: (95.86, 0.10), 12800: (96.17, 0.05), 25000: (96.58, 0.19)},
    },
    "llm": {
        **{200: (94.03, 0.28), 400: (94.08, 0.37), 800: (94.33, 0.45), 1600: (94.44, 0.31)},
        **{3200: (94.74, 0.10), 6400: (94.80, 0.07), 12800: (94.85, 0.07), 25000: (94.77, 0.04)},
    },
}

# RoBERTa-large by the share of gold train labels that are flipped: end to end, encoder frozen.
NOISE = {
    **{0: (96.54, 76.27), 1: (96.50, 77.84), 2: (96.47, 78.93), 5: (96.35, 78.27)},
    **{10: (96.23, 78.14), 20: (95.90, 77.04), 30: (95.76, 74.29), 40: (94.82, 68.12)},
    **{45: (92.99, 60.36), 48: (75.67, 54.72), 48.5: (70.92, 54.16), 48.8: (66.86, 53.72)},
    **{49: (65.52, 53.57), 50: (47.13, 51.96)},
}
