//! Strangers at the port for other gateways: when they come, and what the gateways count of them.

use ringway::metrics::{ShardMetrics, TakenCause, TakenOutcome};

use super::super::plan::Many;
use super::super::stranger::Says;
use super::super::world::{Event, Guest, World};

/// A flood comes within so many microseconds.
const FLOOD_LASTS: usize = 1_000_000;

/// So many connections of one machine that prove nothing are heard by each core: a burst, and then so
/// many a second (docs/many-gateways.md).
const HEARD: (u64, u64) = (64, 16);
/// So many more may be on their way when the burst is used up.
const UNDER_WAY: u64 = 60;

impl World {
    /// Plans when strangers come. One in three has a good prelude.
    pub(super) fn expect_strangers(&mut self, many: Many, trouble: usize) {
        for _ in 0..many.strangers {
            let (at, node) = (self.seed.range(0, trouble), self.seed.below(many.nodes));
            let good = self.seed.chance(33);
            let says = if good { Says::Good } else { Says::any(&mut self.seed) };
            self.after(at, Event::Knock(Guest::Stranger { says, node }));
        }
        if many.flood > 0 {
            let begin = self.seed.range(0, trouble);
            for number in 0..many.flood {
                let at = begin + self.seed.range(0, FLOOD_LASTS);
                let good = number % 20 == 0;
                let says = if good { Says::Good } else { Says::at_once(&mut self.seed) };
                self.after(at, Event::Knock(Guest::Stranger { says, node: 0 }));
            }
        }
    }

    /// Checks what was counted of strangers, whatever became of the gateways.
    pub(super) fn check_strangers(&self, all: &ShardMetrics) {
        let kept_out = self.wiring.lock().anybody_kept_out();
        assert_eq!(kept_out, None, "nobody lets it in again");
        for cause in TakenCause::ALL {
            for outcome in TakenOutcome::ALL {
                let counted = all.relays.taken(*cause, *outcome);
                let (least, most) = self.ledger.strange.bounds(*cause, *outcome);
                assert!(least <= counted, "{cause:?}: {counted} of {least} were {outcome:?}");
                use TakenOutcome::{Forged, Unheard, Version};
                // No gateway is ever taken for a stranger.
                let only = matches!(outcome, Forged | Unheard | Version);
                assert!(
                    !only || counted <= most,
                    "{cause:?}: {counted} of {most} were {outcome:?}"
                );
            }
        }
    }

    /// Checks the rest of it in a run in which nothing failed and nobody has left.
    pub(super) fn check_all_strangers(&self, all: &ShardMetrics) {
        let of = |outcome: &TakenOutcome| all.relays.taken(TakenCause::None, *outcome);
        let strange = &self.ledger.strange;
        let counted: u64 = TakenOutcome::ALL.iter().map(of).sum();
        assert_eq!(counted, strange.tries, "not one refusal each stranger");
        assert_eq!(of(&TakenOutcome::Unheard), strange.unheard, "strangers that were not heard");
        if let Some(many) = self.plan.many.filter(|many| many.flood > 0) {
            let seconds = 1 + FLOOD_LASTS as u64 / 1_000_000;
            let heard = self.plan.cores as u64 * (HEARD.0 + seconds * HEARD.1) + UNDER_WAY;
            let others = many.strangers as u64;
            let fine = strange.tries - strange.unheard <= heard + others;
            assert!(fine, "{} of {} were heard", strange.tries - strange.unheard, strange.tries);
        }
    }
}
