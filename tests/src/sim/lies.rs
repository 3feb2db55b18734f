//! Words of a cloud that is out of its mind: each can be read, and none of them makes sense.

use hedge_proto::{CaseKey, Epoch};

use super::message::Down;
use super::world::World;

/// What the cloud gives as the reason of a failed try.
pub(super) const FAILED: &str = "failed";

/// How often a word is repeated, all at once.
const REPEATS: usize = 12;

impl World {
    pub(super) fn cloud_lies(&mut self, instance: usize) {
        let open: Vec<CaseKey> = self.device.disk.open().map(|(key, _)| key).collect();
        let nobody = CaseKey { epoch: Epoch(self.dice.number()), sequence: self.dice.between(0, 50) };
        let key = if open.is_empty() { nobody } else { self.dice.pick(&open) };
        let after_s = self.dice.pick(&[0, 1, 30, 4_000_000_000]);
        let words = match self.dice.between(0, 6) {
            0 => vec![
                Down::Received(vec![nobody]),
                Down::Unknown(vec![nobody]),
                Down::Send(nobody),
                Down::Failed(nobody),
                Down::Dead(nobody),
                Down::Verdict { key: nobody, revision: 3 },
            ],
            1 => vec![Down::Odd; REPEATS],
            2 => vec![Down::Verdict { key, revision: 0 }; REPEATS],
            3 => vec![Down::Busy { after_s }; REPEATS],
            4 => [Down::Failed(key), Down::Received(vec![key])].into_iter().cycle().take(REPEATS).collect(),
            5 => [Down::Unknown(vec![key]), Down::Send(key)].into_iter().cycle().take(REPEATS).collect(),
            _ => {
                self.clouds[instance].forgetful_until = self.until(10, 900);
                Vec::new()
            }
        };
        self.note(|| format!("instance {instance} says {words:?} out of nothing"));
        self.cloud_answers(instance, words);
    }
}
