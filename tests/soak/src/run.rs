//! One soak from its beginning to its verdict.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use viaduct_lab::Control;

use crate::churn::Worker;
use crate::event::{Deck, Kind};
use crate::finish::finish;
use crate::flags::Flags;
use crate::happen::happen;
use crate::keep;
use crate::losses::{self, Loss, Window};
use crate::scene::Scene;
use crate::streams::Streams;
use crate::summary::Summary;
use crate::tally::Tally;
use crate::vitals::Vitals;

/// Runs it, inside the lab's namespaces, and prints what it came to.
pub(crate) fn all(flags: &Flags, control: Control) -> ExitCode {
    let seed = flags.seed();
    println!("soak: three nodes come up; SOAK_SEED={seed}");
    let mut summary = Summary {
        seed,
        ..Summary::default()
    };
    let scene = Scene::up(control);
    match &scene {
        Ok(scene) => {
            summary.backend = scene.lab.options().backend.name();
            if let Err(error) = soak(flags, scene, &mut summary) {
                summary.faults.push(format!("{error:#}"));
            }
        }
        Err(error) => summary
            .faults
            .push(format!("the lab does not come up: {error:#}")),
    }
    println!("{}", summary.text());
    let well = summary.faults.is_empty();
    if well && flags.logs.is_none() {
        return ExitCode::SUCCESS;
    }
    let kept = flags.logs(seed);
    match keep::everything(&kept, scene.ok().as_ref(), &summary) {
        Ok(()) => println!("logs, ledgers and kernels are kept in {}", kept.display()),
        Err(error) => println!("the logs cannot be kept in {}: {error:#}", kept.display()),
    }
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn soak(flags: &Flags, scene: &Scene, summary: &mut Summary) -> Result<()> {
    let start = vitals(scene)?;
    let mut streams = Streams::start(&scene.stays)?;
    let begun = Instant::now();
    let mut windows = Vec::new();
    let outcome = under_churn(summary, flags, scene, |summary, stop| {
        events(flags, scene, &mut streams, &mut windows, summary, stop)
    });
    summary.took = begun.elapsed();
    // What was lost until it went wrong is told in any case.
    let settled = outcome.and_then(|()| {
        if let Some(plant) = flags.plant {
            plant.late(scene)?;
        }
        scene.well().context("at the end")
    });
    let last = streams.stop()?;
    summary.sent = streams.sent();
    judge(&last, &windows, summary);
    settled?;
    let half = summary.half_time.clone().unwrap_or_else(|| start.clone());
    let times = start.into_iter().zip(half).zip(vitals(scene)?);
    summary.vitals = times
        .map(|((start, half), end)| [start, half, end])
        .collect();
    let grown = summary
        .vitals
        .iter()
        .flat_map(|[start, half, end]| end.grown(start, half));
    summary.faults.extend(grown.collect::<Vec<_>>());
    finish(scene, summary);
    Ok(())
}

/// What every agent uses now.
fn vitals(scene: &Scene) -> Result<Vec<Vitals>> {
    scene.nodes.iter().map(|node| Vitals::now(node)).collect()
}

/// Has pods come and go on every node while `work` goes on. Either ends when the other
/// fails: `work` is given the flag that says so.
fn under_churn(
    summary: &mut Summary,
    flags: &Flags,
    scene: &Scene,
    work: impl FnOnce(&mut Summary, &AtomicBool) -> Result<()>,
) -> Result<()> {
    let (stop, tally) = (AtomicBool::new(false), Mutex::new(Tally::default()));
    let seed = summary.seed;
    let outcome = std::thread::scope(|scope| {
        let (stop, tally) = (&stop, &tally);
        let workers: Vec<_> = (0..scene.nodes.len())
            .map(|number| {
                scope.spawn(move || {
                    let done = Worker::new(scene, number, seed, tally).work(stop);
                    // Whether well or not: nobody goes on without it.
                    stop.store(true, Ordering::Relaxed);
                    done
                })
            })
            .collect();
        let planted = flags.plant.map_or(Ok(()), |plant| plant.early(scene));
        let mut outcome = planted.and_then(|()| work(summary, stop));
        stop.store(true, Ordering::Relaxed);
        scene.given_up().store(outcome.is_err(), Ordering::Relaxed);
        for worker in workers {
            let joined = worker.join();
            let done = joined.unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")));
            match (&outcome, done) {
                (_, Ok(())) => {}
                // What follows would only find the pods that it left behind.
                (Ok(()), Err(error)) => outcome = Err(error),
                (Err(_), Err(error)) => summary.faults.push(format!("{error:#}")),
            }
        }
        outcome
    });
    summary.tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome
}

/// One event after the other until the time is over or something has failed.
fn events(
    flags: &Flags,
    scene: &Scene,
    streams: &mut Streams,
    windows: &mut Vec<Window>,
    summary: &mut Summary,
    stop: &AtomicBool,
) -> Result<()> {
    let has_tunnel = scene.lab.options().backend.tunnel().is_some();
    let kinds = Kind::ALL.into_iter();
    let kinds = kinds.filter(|kind| has_tunnel || *kind != Kind::TunnelDown);
    let mut deck = Deck::new(summary.seed, kinds.collect(), scene.nodes.len());
    let end = Instant::now() + flags.minutes;
    let left = || end.saturating_duration_since(Instant::now());
    loop {
        std::thread::sleep(deck.pause().min(left()));
        if left() == Duration::ZERO || stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(event) = deck.next(left()) else {
            return Ok(());
        };
        let (kind, begun) = (event.kind, streams.now());
        let outcome = happen(scene, &event);
        windows.push(Window {
            event,
            begun,
            ended: streams.now(),
        });
        let at = begun.as_secs_f64();
        let recovery = outcome.with_context(|| format!("{event} at {at:.1} s"))?;
        println!(
            "{at:>8.1} s  {event} for {:.1} s; well again after {:.2} s{}",
            event.lasts.as_secs_f64(),
            recovery.took.as_secs_f64(),
            recovery
                .last
                .map_or_else(String::new, |last| format!(" ({last})"))
        );
        summary.happened(kind, recovery.took);
        let lost = streams.losses();
        judge(&lost, windows, summary);
        if summary.half_time.is_none() && left() * 2 <= flags.minutes {
            summary.half_time = Some(vitals(scene)?);
        }
    }
}

/// Counts what was lost; what may not have been is wrong.
fn judge(lost: &[Loss], windows: &[Window], summary: &mut Summary) {
    let unexplained = losses::unexplained(lost, windows);
    summary.allowed += lost.len() - unexplained.len();
    summary.lost += unexplained.len();
    summary.faults.extend(losses::told(&unexplained, windows));
}
