"""From samples to scores: a reward is a plain callable `reward(batch: Batch) -> Scores`."""

from rlgenkit._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "aesthetic": "aesthetic_terms aesthetic_truth",
        "agreement": (
            "Agreement agreement_row agreement_table bootstrap_over_items human_row "
            "leave_one_out_ceiling ordered_pairs pairwise_accuracy pearson preferences spearman"
        ),
        "batch": "Batch Reward Scores parsed scored texts where_defined",
        "calibration": "vote_auroc",
        "combine": ("effective_weights minimum product standardize standardized_sum weighted_sum"),
        "composition": (
            "binding_score composition_score count_score from_reader "
            "relation_score typographic_count_score"
        ),
        "diagnostic": "EDITS Pairs make_pairs",
        "judges": (
            "Checklist Choice Reading Scale checklist_scores choice_indices mean_scores "
            "pairwise_scores parse_judgment scalar_scores voted"
        ),
        "pairwise": "bradley_terry_loss fit_bradley_terry fit_linear_pairs pairwise_ce verdicts",
        "picks": ("best_of best_of_kl best_of_weights diversity_of_picks in_units pick_shares"),
        "pixels": (
            "STATISTICS brightness color_entropy colorfulness compressibility contrast "
            "edge_density jpeg_kb luminance of_images picture_statistics "
            "saturation sharpness warmth"
        ),
        "proxy": (
            "AestheticProxy aesthetic_proxy_reward curated_looks load_aesthetic_proxy local_texture"
        ),
        "rubrics": "Criterion Rubric parse_rubric rubric_preferences rubric_scores",
        "sentences": (" SentenceEncoder embed_sentences load_sentence_encoder principal_axes"),
        "similarity": "DualEncoder embed_images embed_texts load_dual_encoder similarity_reward",
        "spread": "diversity mean_pairwise_distance",
        "voters": "Voters new_voters train_voters",
        "words": "ocr_reward rapid_ocr word_score word_similarity",
    },
)
