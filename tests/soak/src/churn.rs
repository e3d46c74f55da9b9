//! Pods that come and go on one node, as a runtime that retries, loses track and dies
//! would have them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use viaduct_lab::{Echo, Node, eventually, in_parallel, netns, probe};
use viaduct_sim::rng::Rng;

use crate::plugin::{self, Sandbox};
use crate::scene::{PATIENCE, Scene};
use crate::tally::Tally;

/// The most pods that come together on a node: with those that stay and the node's own
/// address they fit one block, so that no ADD ever needs the store.
const TOGETHER: u64 = 12;
/// One batch in so many is a crowd, for which the node needs more blocks.
const CROWDS: u64 = 12;
/// How many pods that is.
const CROWD: u64 = 40;
/// The longest pause between two batches, in milliseconds.
const PAUSE: u64 = 600;
/// And how much longer it is after a crowd, so that its blocks are given back.
const AFTERWARDS: u64 = 2_500;
/// When the plugin is killed at the latest, in microseconds: longer than it takes.
const DEADLY: u64 = 12_000;

/// What becomes of the pods of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// ADD, CHECK, DEL.
    Plain,
    /// All of them twice.
    Twice,
    /// The namespace is gone before the DEL.
    LostNetns,
    /// Half of them are forgotten by the runtime, and collected by GC.
    Collected,
    /// The plugin is killed in the midst of ADD.
    PluginKilled(After),
    /// The plugin is killed in the midst of DEL, which is called again.
    DelKilled,
}

/// What a runtime does after its plugin was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The ADD again.
    Again,
    /// DEL.
    Del,
    /// GC, and later DEL.
    Collect,
}

impl Act {
    fn draw(rng: &mut Rng) -> Act {
        match rng.under(11) {
            0..4 => Act::Plain,
            4 | 5 => Act::Twice,
            6 => Act::LostNetns,
            7 => Act::Collected,
            8 => Act::DelKilled,
            _ => Act::PluginKilled(match rng.under(3) {
                0 => After::Again,
                1 => After::Del,
                _ => After::Collect,
            }),
        }
    }
}

/// One node's pods that come and go.
pub(crate) struct Worker<'a> {
    scene: &'a Scene,
    /// The node's number.
    number: usize,
    tally: &'a Mutex<Tally>,
    rng: Rng,
}

impl<'a> Worker<'a> {
    /// On the node of this number.
    pub(crate) fn new(scene: &'a Scene, number: usize, seed: u64, tally: &'a Mutex<Tally>) -> Self {
        // Another stream of chance for each node.
        let rng = Rng::new(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            scene,
            number,
            tally,
            rng,
        }
    }

    /// Has pods come and go until told to stop.
    ///
    /// # Errors
    /// What went wrong, with the pod.
    pub(crate) fn work(mut self, stop: &AtomicBool) -> Result<()> {
        let name = self.node().name().to_owned();
        let mut batch = 0u64;
        while !stop.load(Ordering::Relaxed) {
            let act = Act::draw(&mut self.rng);
            let (crowd, few) = (self.rng.one_in(CROWDS), 1 + self.rng.under(TOGETHER));
            let (pods, rest) = if crowd { (CROWD, AFTERWARDS) } else { (few, 0) };
            let ids = (0..pods).map(|n| format!("{name}-c{batch}-{n}"));
            self.batch(act, ids)
                .with_context(|| format!("pods that come and go on {name} ({act:?})"))?;
            batch += 1;
            std::thread::sleep(Duration::from_millis(rest + self.rng.under(PAUSE)));
        }
        Ok(())
    }

    fn node(&self) -> &'a Node {
        &self.scene.nodes[self.number]
    }

    fn batch(&mut self, act: Act, ids: impl Iterator<Item = String>) -> Result<()> {
        let pods = ids
            .map(|id| Sandbox::new(self.node(), self.scene.given_up(), id))
            .collect::<Result<Vec<_>>>()?;
        let deadly = Duration::from_micros(self.rng.under(DEADLY));
        let (_, far) = &self.scene.stays[self.rng.index(self.scene.stays.len())];
        match act {
            Act::Plain => self.each(&pods, |pod| {
                let result = self.add(pod)?;
                self.check(pod, &result)?;
                eventually(PATIENCE, || {
                    probe::ping(&netns::path(&pod.id), far.ip, Echo::default())
                })
                .with_context(|| format!("{} -> {} ({})", pod.id, far.ip, far.name))?;
                self.del(pod)
            }),
            Act::Twice => self.each(&pods, |pod| {
                let (first, second) = (self.add(pod)?, self.add(pod)?);
                ensure!(
                    first["ips"] == second["ips"],
                    "{}: ADD said {} and, when called again, {}",
                    pod.id,
                    first["ips"],
                    second["ips"]
                );
                self.check(pod, &second)?;
                self.check(pod, &first)?;
                self.del(pod)?;
                self.del(pod)
            }),
            Act::LostNetns => self.each(&pods, |pod| {
                self.add(pod)?;
                self.scene.book().gives_back(&pod.id);
                pod.remove()?;
                self.del(pod)
            }),
            Act::Collected => self.collected(&pods),
            Act::DelKilled => {
                self.each(&pods, |pod| self.add(pod).map(drop))?;
                self.kill(&pods, "DEL", deadly)?;
                self.each(&pods, |pod| self.del(pod))
            }
            Act::PluginKilled(after) => {
                self.kill(&pods, "ADD", deadly)?;
                match after {
                    After::Again => self.each(&pods, |pod| {
                        let result = self.add(pod)?;
                        self.check(pod, &result)
                    })?,
                    After::Del => {}
                    After::Collect => self.collect(&[])?,
                }
                self.each(&pods, |pod| self.del(pod))
            }
        }?;
        self.count().pods += pods.len() as u64;
        pods.iter().try_for_each(Sandbox::remove)
    }

    /// Calls a verb for each pod and kills the plugin.
    fn kill(&self, pods: &[Sandbox<'_>], verb: &str, after: Duration) -> Result<()> {
        if verb == "DEL" {
            let mut book = self.scene.book();
            pods.iter().for_each(|pod| book.gives_back(&pod.id));
        }
        self.each(pods, |pod| pod.call_and_kill(verb, after))?;
        self.count().killed += pods.len() as u64;
        Ok(())
    }

    /// The runtime forgets every other pod; the others must not suffer.
    fn collected(&self, pods: &[Sandbox<'_>]) -> Result<()> {
        let results = in_parallel(pods.len(), pods, |pod| self.add(pod))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for (n, pod) in pods.iter().zip(&results).enumerate() {
            if n % 2 == 0 { &mut gone } else { &mut kept }.push(pod);
        }
        gone.iter()
            .for_each(|(pod, _)| self.scene.book().gives_back(&pod.id));
        let ids: Vec<&str> = kept.iter().map(|(pod, _)| pod.id.as_str()).collect();
        self.collect(&ids)?;
        kept.iter()
            .try_for_each(|(pod, result)| self.check(pod, result))?;
        self.each(pods, |pod| self.del(pod))
    }

    /// GC: of this node's pods those that stay are there, and `others`.
    fn collect(&self, others: &[&str]) -> Result<()> {
        let stay = self.scene.stays.iter();
        let stay = stay.filter(|(number, _)| *number == self.number);
        let mut keep: Vec<&str> = stay.map(|(_, pod)| pod.container_id.as_str()).collect();
        keep.extend(others);
        plugin::collect(self.node(), self.scene.given_up(), &keep)?;
        self.count().gc += 1;
        Ok(())
    }

    fn each<'p>(
        &self,
        pods: &[Sandbox<'p>],
        work: impl Fn(&Sandbox<'p>) -> Result<()> + Sync,
    ) -> Result<()>
    where
        Self: Sync,
    {
        in_parallel(pods.len(), pods, work).into_iter().collect()
    }

    fn add(&self, pod: &Sandbox<'_>) -> Result<Value> {
        let (outcome, took) = pod.call("ADD", None)?;
        self.scene.book().given(outcome.address()?, &pod.id)?;
        let mut tally = self.count();
        tally.add += 1;
        tally.longest_add = tally.longest_add.max(took);
        Ok(outcome.json)
    }

    fn check(&self, pod: &Sandbox<'_>, result: &Value) -> Result<()> {
        pod.call("CHECK", Some(result))?;
        self.count().check += 1;
        Ok(())
    }

    fn del(&self, pod: &Sandbox<'_>) -> Result<()> {
        self.scene.book().gives_back(&pod.id);
        let (_, took) = pod.call("DEL", None)?;
        let mut tally = self.count();
        tally.del += 1;
        tally.longest_del = tally.longest_del.max(took);
        Ok(())
    }

    fn count(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_runtime_can_do_is_drawn_and_by_the_seed_alone() {
        let drawn = |seed| -> Vec<Act> {
            let mut rng = Rng::new(seed);
            (0..200).map(|_| Act::draw(&mut rng)).collect()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        let killed = [After::Again, After::Del, After::Collect].map(Act::PluginKilled);
        let others = [
            Act::Plain,
            Act::Twice,
            Act::LostNetns,
            Act::Collected,
            Act::DelKilled,
        ];
        for act in others.iter().chain(&killed) {
            assert!(drawn(1).contains(act), "{act:?}");
        }
    }
}
