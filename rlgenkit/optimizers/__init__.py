"""From scores to an update: advantages, losses, anchors, weighted regression, games, update rules."""

from rlgenkit._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "advantages": ("PromptTracker batch_advantages group_advantages group_moments"),
        "ema": "Ema",
        "games": "group_win_rates win_rates",
        "losses": (
            "Clip anchor_terms anchor_weights clipped_ratio kl_k3 "
            "ppo_clip_loss ppo_clip_terms ratio_stats reinforce reinforce_loss reinforce_terms "
            "velocity_mse"
        ),
        "pareto": "dominance hypervolume pareto_mask pareto_weights",
        "regression": ("nft_terms preference_denoising_terms rwr_weights weighted_denoising_loss"),
        "selection": "best_of_k",
        "tabular": "potential_shaping",
        "tokens": "dpo_loss masked_mean rewards_to_go rloo_advantages token_policy_loss whiten",
        "updates": "Replay make_optimizer policy_gradient_update policy_update",
    },
)
