//! A full disk refuses cases and says so, loses none that it took, and is used again as soon as there is room.
//!
//! A round is one fill of a 48 MB ext4 file system, by the cases themselves or by somebody else, with the agent
//! stopped, killed or cut off from power while the disk is full, or left alone.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, Refusal};
use hedge_tests::ledger::Picture;
use hedge_tests::soak::{self, Chance};
use hedge_tests::{Agent, AgentConfig, Ext4, Ledger, skip, wait};

/// In CI; a hundred take about six minutes.
const FILLS: u32 = 10;

const DISK_MIB: u64 = 48;

/// Room that was made is used without a restart; on a busy disk `stored` takes longer than a caller is kept waiting.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn a_disk_is_filled_and_freed_again_and_again() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_ext4() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut disk = Ext4::make(dir.path(), DISK_MIB)?;
    let config = AgentConfig::new(dir.path(), "device-1").state_dir(&disk.path());
    let config = config.model_keeping("fashion-small", 1.0).http_source("pictures");
    // Not even the usual margin is left: the file system itself says no.
    let mut agent = config.section("[outbox]\nfree_bytes_min = 0").start()?;
    let (ledger, mut chance) = (Ledger::default(), Chance::new());
    let mut checked = 0;
    for fill in 0..soak::rounds(FILLS) {
        let round = Round { disk: &mut disk, agent: &mut agent, ledger: &ledger, chance: &mut chance };
        checked += round.run().with_context(|| format!("fill {fill}; the agent's log:\n{}", agent.log_end()))?;
    }
    eprintln!("{checked} times a stored case was looked for, and was there whole");
    agent.stop()
}

struct Round<'a> {
    disk: &'a mut Ext4,
    agent: &'a mut Agent,
    ledger: &'a Ledger,
    chance: &'a mut Chance,
}

impl Round<'_> {
    fn run(mut self) -> Result<usize> {
        let refused_before = self.ledger.refused(Refusal::Disk);
        let somebody_else = self.chance.happens(40);
        if somebody_else {
            self.store_some(20)?;
            self.hog()?;
        }
        self.fill_up()?;
        self.store_some(5)?;
        let refused = self.ledger.refused(Refusal::Disk) - refused_before;
        let counted = self.agent.http.status()?.samples.refused.get("disk").copied().unwrap_or(0);
        ensure!(refused > 0 && counted >= refused, "{refused} refused, {counted} counted");
        self.end_and_start()?;
        let mut checked = self.ledger.check(&self.agent.http)?;

        if somebody_else {
            std::fs::remove_file(self.hog_path())?;
        } else {
            let stored = self.ledger.stored();
            let share = stored.len() * 7 / 10;
            // Oldest first, as verdicts come: tombstones are taken by the full disk.
            for id in &stored[..share] {
                self.ledger.drop_case(&self.agent.http, id)?;
            }
        }
        let recovered = || Ok((self.post()? == CaseFate::Stored).then_some(()));
        wait::until("a case is stored again", RECOVERED_WITHIN, recovered)?;
        checked += self.ledger.check(&self.agent.http)?;
        let damaged = self.agent.http.status()?.queue.damaged_records;
        ensure!(damaged == 0, "{damaged} records are damaged");
        Ok(checked)
    }

    /// Until the first case is refused for want of room.
    fn fill_up(&mut self) -> Result<()> {
        for _ in 0..5_000 {
            if self.post()? == CaseFate::Refused(Refusal::Disk) {
                return Ok(());
            }
        }
        anyhow::bail!("the disk is not full after 5,000 cases; {} bytes are free", self.disk.free_bytes()?)
    }

    fn store_some(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.post().map(drop))
    }

    fn post(&mut self) -> Result<CaseFate> {
        let bytes = usize::try_from(self.chance.within(500..300_000))?;
        let seed = self.chance.within(1..u64::MAX);
        let fate = self.ledger.post(&self.agent.http, "pictures", Picture { bytes, seed })?;
        ensure!(matches!(fate, CaseFate::Stored | CaseFate::Pending | CaseFate::Refused(Refusal::Disk)), "{fate:?}");
        Ok(fate)
    }

    /// Somebody else takes all the room at once, to the last kilobytes.
    fn hog(&mut self) -> Result<()> {
        let file = File::create(self.hog_path())?;
        let mut bytes = self.disk.free_bytes()?;
        let step = self.chance.within(4_096..400_000);
        // The file system needs some for itself: less and less is asked for until it fits.
        while bytes > 0 && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).is_err() {
            bytes = bytes.saturating_sub(step);
        }
        Ok(file.sync_all()?)
    }

    fn hog_path(&self) -> PathBuf {
        self.disk.path().join("hog")
    }

    /// What happens to the agent while the disk is full.
    fn end_and_start(&mut self) -> Result<()> {
        match self.chance.within(0..4) {
            0 => return Ok(()),
            1 => self.agent.stop()?,
            2 => self.agent.kill()?,
            _ => {
                self.agent.kill()?;
                self.disk.cut_power()?;
            }
        }
        self.agent.start_again()
    }
}
