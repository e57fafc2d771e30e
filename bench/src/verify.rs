//! `verify`: asks the appliance for every trace it must have, and compares it with what was sent.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use query_api::proto::{Decision, GetStatusResponse, SearchTracesRequest};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::appliance::Appliance;
use crate::check::{self, Claim, Findings, SentBodies, Share};
use crate::clock::{self, parse_duration};
use crate::error::Error;
use crate::ledger::{Delivery, Ledger};
use crate::plan::Plan;
use crate::template::encode_scope;

/// How often the appliance is asked whether everything is decided.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Traces of a page of the search.
const PAGE: u32 = 5_000;

/// No search goes on beyond this many pages: 50 M traces.
const PAGES_MAX: usize = 10_000;

/// A trace that is missing is asked for again after this: it may just be on its way from live to kept.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How often progress is told.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How many ids of each kind of trouble the result names.
const EXAMPLES_MAX: usize = 5;

/// Options of `verify`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Ledgers of `load`, all of one tenant
    #[arg(long, required = true, num_args = 1..)]
    ledger: Vec<PathBuf>,
    /// The query port
    #[arg(long, default_value = "127.0.0.1:4320")]
    query: String,
    /// Slow traces must be there, too
    #[arg(long)]
    expect_slow: bool,
    /// Fail when the share of plain traces kept by the head stage cannot come from this one
    #[arg(long)]
    expect_head: Option<f64>,
    /// Check arrived = kept + sampled_out + shed + expired + refused, and that nothing is undecided
    #[arg(long)]
    identity: bool,
    /// Do not list what was kept: checks only the traces that must be there
    #[arg(long)]
    skip_kept: bool,
    /// How long to wait until everything is decided
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Questions under way
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Nothing is missing, doubled, altered or made up, and every other expectation of the command line holds.
    pub(crate) passed: bool,
    seconds: f64,
    /// Of those, reading the ledgers; waiting for decisions; asking by id and comparing; listing.
    seconds_by_step: Steps,
    /// Traces of which at least one span was acknowledged.
    traces_acknowledged: u64,
    spans_acknowledged: u64,
    error_traces: u64,
    /// Of those, traces whose error came late: only what came late must be there.
    late_error_traces: u64,
    slow_traces: u64,
    /// Traces that were asked for and compared.
    traces_compared: u64,
    spans_compared: u64,
    /// Traces that must be there and are not.
    traces_missing: u64,
    /// Traces that are there without some of their acknowledged spans.
    traces_incomplete: u64,
    #[serde(flatten)]
    findings: Findings,
    /// Ids of traces in trouble.
    examples: Vec<String>,
    /// Slow traces that are there, of all that are slow and without error.
    slow_kept: Option<Share>,
    /// Plain traces kept by the head stage, of all that were not kept as slow.
    head_kept: Option<Share>,
    /// Plain traces kept for being slower than their operation's p95.
    plain_kept_as_slow: u64,
    kept: Listed,
    counts: Option<Counts>,
}

/// Where the time went.
#[derive(Debug, Default, Serialize)]
struct Steps {
    reading: f64,
    waiting: f64,
    comparing: f64,
    listing: f64,
}

/// What listing the kept traces found.
#[derive(Debug, Default, Serialize)]
struct Listed {
    traces: u64,
    pending: u64,
    /// Of other runs.
    foreign: u64,
    /// More than once in one listing.
    listed_twice: u64,
    /// There by id, but not listed.
    not_listed: u64,
    /// What the appliance said about incomplete answers.
    incomplete: Vec<String>,
}

/// The tenant's spans, as the appliance counts them.
#[derive(Debug, Serialize)]
struct Counts {
    arrived: u64,
    kept: u64,
    sampled_out: u64,
    shed: u64,
    expired: u64,
    refused: u64,
    undecided: u64,
    /// `arrived` is the sum of the others.
    identity_holds: bool,
}

/// Where a trace comes from.
#[derive(Clone, Copy)]
struct Origin {
    run: u32,
    delivery: u32,
    trace: u32,
}

struct Run {
    ledger: Ledger,
    plan: Plan,
}

/// All that was sent, by trace.
struct Sent {
    runs: Vec<Run>,
    claims: HashMap<[u8; 16], (Origin, Claim)>,
}

impl Sent {
    fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut sent = Self { runs: Vec::new(), claims: HashMap::new() };
        for (run, path) in (0u32..).zip(paths) {
            let (ledger, plan) = Ledger::read(path)?;
            for (number, delivery) in (0u32..).zip(&ledger.deliveries) {
                for (trace, claim) in (0u32..).zip(check::claims(&plan, delivery)) {
                    let origin = Origin { run, delivery: number, trace };
                    sent.claims.insert(plan.trace_id(delivery.group, trace), (origin, claim));
                }
            }
            sent.runs.push(Run { ledger, plan });
        }
        let tenant = |run: &Run| run.ledger.header.tenant.clone();
        if sent.runs.iter().any(|run| tenant(run) != tenant(&sent.runs[0])) {
            return Err(Error::Options(
                "the ledgers are of different tenants: verify them one by one".to_owned(),
            ));
        }
        Ok(sent)
    }

    fn tenant(&self) -> &str {
        self.runs.first().map_or("default", |run| &run.ledger.header.tenant)
    }

    /// Times that hold every trace's start, cut into `count` pieces that hold about as many traces each.
    fn time_slices(&self, count: u64) -> Vec<Range<u64>> {
        /// More than the longest trace and the difference of two clocks.
        const MARGIN: u64 = 60_000_000_000;
        let deliveries = self.runs.iter().flat_map(|run| &run.ledger.deliveries);
        let bases = deliveries.map(|delivery| delivery.base_unix_nanos);
        let (low, high) = bases.fold((u64::MAX, 0), |(low, high), base| (low.min(base), high.max(base)));
        let step = high.saturating_sub(low) / count.max(1);
        let inner = (1..count).map(|number| low.saturating_add(number * step));
        let mut cuts = vec![low.saturating_sub(MARGIN)];
        cuts.extend(inner);
        cuts.push(high.saturating_add(MARGIN));
        cuts.windows(2).map(|pair| pair[0]..pair[1]).filter(|slice| !slice.is_empty()).collect()
    }

    /// Whether each trace comes in one request, so that it can have no parts with different starts.
    fn traces_come_whole(&self) -> bool {
        self.runs.iter().all(|run| run.plan.bodies_per_group() == 1)
    }

    /// In the order in which the spans were sent, which is about that in which the appliance keeps them: neighbours then
    /// come from one page of its archive.
    fn by_delivery(&self, ids: &[[u8; 16]]) -> Vec<Question> {
        let place = |&id: &[u8; 16]| {
            let &(origin, claim) = self.claims.get(&id)?;
            let base = self.delivery(origin).base_unix_nanos;
            Some(((base, origin.run, origin.delivery, origin.trace), Question { id, origin, claim }))
        };
        let mut places: Vec<_> = ids.iter().filter_map(place).collect();
        places.sort_unstable_by_key(|&(place, _)| place);
        places.into_iter().map(|(_, question)| question).collect()
    }

    fn delivery(&self, origin: Origin) -> &Delivery {
        &self.runs[origin.run as usize].ledger.deliveries[origin.delivery as usize]
    }

    fn bodies(&self, origin: Origin) -> SentBodies<'_> {
        SentBodies::new(&self.runs[origin.run as usize].plan, self.delivery(origin))
    }
}

/// A trace to be asked for.
#[derive(Clone, Copy)]
struct Question {
    id: [u8; 16],
    origin: Origin,
    claim: Claim,
}

/// Asks, compares and reports.
///
/// # Errors
/// When a ledger cannot be read or the appliance does not answer.
pub(crate) fn run(args: &Args) -> Result<Report, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System { what: "start a runtime", source })?;
    let start = clock::now();
    let sent = Arc::new(Sent::read(&args.ledger)?);
    let reading = start.elapsed().as_secs_f64();
    let mut report = runtime.block_on(verify(args, &sent))?;
    report.seconds_by_step.reading = reading;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

async fn verify(args: &Args, sent: &Arc<Sent>) -> Result<Report, Error> {
    let appliance = Appliance::connect(&args.query, sent.tenant()).await?;
    let begun = clock::now();
    let status = until_decided(&appliance, args.wait).await?;
    let waiting = begun.elapsed().as_secs_f64();
    let mut report = Report { counts: status.counts.map(counts_of), ..Report::default() };
    let mut must = Vec::new();
    for (&id, &(_, claim)) in &sent.claims {
        report.traces_acknowledged += u64::from(claim.spans_acknowledged > 0);
        report.spans_acknowledged += u64::from(claim.spans_acknowledged);
        report.error_traces += u64::from(claim.error);
        report.late_error_traces += u64::from(claim.late_error);
        report.slow_traces += u64::from(claim.slow);
        if claim.error || (claim.slow && args.expect_slow) {
            must.push(id);
        }
    }
    eprintln!("asking for {} traces that must be there", must.len());
    let mut verdicts = ask(&appliance, sent, &must, args.concurrency).await?;
    let absent: Vec<[u8; 16]> = verdicts.iter().filter(|v| v.is_in_trouble()).map(|v| v.id).collect();
    if !absent.is_empty() {
        eprintln!("asking again for {} of them", absent.len());
        sleep(ASK_AGAIN_AFTER).await;
        verdicts.retain(|verdict| !verdict.is_in_trouble());
        verdicts.extend(ask(&appliance, sent, &absent, args.concurrency).await?);
    }
    let mut listing = 0.0;
    if !args.skip_kept {
        let begun = clock::now();
        let listed = list(&appliance, sent, args.concurrency, &mut report.kept).await?;
        listing = begun.elapsed().as_secs_f64();
        let asked: HashMap<[u8; 16], ()> = must.iter().map(|&id| (id, ())).collect();
        let others: Vec<[u8; 16]> = listed.keys().filter(|id| !asked.contains_key(*id)).copied().collect();
        eprintln!("comparing {} more traces that were kept", others.len());
        let compared = ask(&appliance, sent, &others, args.concurrency).await?;
        report.kept.not_listed =
            verdicts.iter().filter(|v| v.found && !listed.contains_key(&v.id)).count() as u64;
        report.judge_shares(sent, &listed);
        verdicts.extend(compared);
    }
    let comparing = begun.elapsed().as_secs_f64() - waiting - listing;
    report.seconds_by_step = Steps { reading: 0.0, waiting, comparing, listing };
    report.judge(&verdicts);
    report.passed = report.holds(args);
    Ok(report)
}

/// What became of one question.
struct Verdict {
    id: [u8; 16],
    found: bool,
    spans: u64,
    findings: Findings,
}

impl Verdict {
    fn is_in_trouble(&self) -> bool {
        !self.found || !self.findings.is_none()
    }
}

async fn until_decided(appliance: &Appliance, wait: Duration) -> Result<GetStatusResponse, Error> {
    let give_up = clock::now() + wait;
    loop {
        let status = appliance.status().await?;
        let undecided = status.counts.as_ref().map_or(0, |counts| counts.undecided);
        if (undecided == 0 && status.live_traces == 0) || clock::now() > give_up {
            return Ok(status);
        }
        eprintln!("{undecided} spans of {} traces are undecided", status.live_traces);
        sleep(POLL_EVERY).await;
    }
}

fn counts_of(counts: query_api::proto::SpanCounts) -> Counts {
    let query_api::proto::SpanCounts { arrived, kept, sampled_out, shed, expired, refused, undecided } =
        counts;
    let identity_holds = arrived == kept + sampled_out + shed + expired + refused + undecided;
    Counts { arrived, kept, sampled_out, shed, expired, refused, undecided, identity_holds }
}

/// Asks for `ids` and compares each answer with what was sent.
async fn ask(
    appliance: &Appliance,
    sent: &Arc<Sent>,
    ids: &[[u8; 16]],
    concurrency: usize,
) -> Result<Vec<Verdict>, Error> {
    let questions = sent.by_delivery(ids);
    let of_one_delivery =
        |a: &Question, b: &Question| (a.origin.run, a.origin.delivery) == (b.origin.run, b.origin.delivery);
    let places = Arc::new(Semaphore::new(concurrency.max(1)));
    let mut answers = JoinSet::new();
    let mut verdicts = Vec::with_capacity(ids.len());
    let mut said = clock::now();
    for questions in questions.chunk_by(of_one_delivery).map(<[Question]>::to_vec) {
        let place = Arc::clone(&places).acquire_owned().await;
        let (appliance, sent) = (appliance.clone(), Arc::clone(sent));
        answers.spawn(async move {
            let verdicts = ask_for(&appliance, &sent, &questions).await;
            drop(place);
            verdicts
        });
        while let Some(done) = answers.try_join_next() {
            verdicts.extend(done.unwrap_or(Err(Error::ThreadLost))?);
        }
        if said.elapsed() >= SAY_EVERY {
            said = clock::now();
            eprintln!("{} of {} traces compared", verdicts.len(), ids.len());
        }
    }
    while let Some(done) = answers.join_next().await {
        verdicts.extend(done.unwrap_or(Err(Error::ThreadLost))?);
    }
    Ok(verdicts)
}

/// Asks for traces of one delivery, one after the other.
async fn ask_for(appliance: &Appliance, sent: &Sent, questions: &[Question]) -> Result<Vec<Verdict>, Error> {
    let Some(first) = questions.first() else { return Ok(Vec::new()) };
    let (bodies, scope) = (sent.bodies(first.origin), encode_scope());
    let mut verdicts = Vec::with_capacity(questions.len());
    for &Question { id, origin, claim } in questions {
        let Some(answer) = appliance.trace(id).await? else {
            verdicts.push(Verdict { id, found: false, spans: 0, findings: Findings::default() });
            continue;
        };
        let spans = answer.summary.map_or(0, |summary| u64::from(summary.span_count));
        let traces = answer.trace.unwrap_or_default();
        let findings = check::compare(&bodies.spans(origin.trace, claim), &scope, &traces.0, true)?;
        verdicts.push(Verdict { id, found: true, spans, findings });
    }
    Ok(verdicts)
}

/// The decisions of the kept traces that were sent by these runs.
async fn list(
    appliance: &Appliance,
    sent: &Arc<Sent>,
    concurrency: usize,
    listed: &mut Listed,
) -> Result<Decisions, Error> {
    // A trace in parts stands at the start of a part, and in several slices then.
    let slices = if sent.traces_come_whole() { concurrency.max(1) as u64 } else { 1 };
    let mut lists = JoinSet::new();
    for slice in sent.time_slices(slices) {
        let (appliance, sent) = (appliance.clone(), Arc::clone(sent));
        lists.spawn(async move { list_slice(&appliance, &sent, slice).await });
    }
    let mut decisions = HashMap::new();
    while let Some(done) = lists.join_next().await {
        let (found, part) = done.unwrap_or(Err(Error::ThreadLost))?;
        let Listed { traces, pending, foreign, listed_twice, not_listed: _, incomplete } = part;
        listed.traces += traces;
        listed.pending += pending;
        listed.foreign += foreign;
        listed.listed_twice += listed_twice;
        listed.incomplete.extend(incomplete);
        for (id, decision) in found {
            listed.listed_twice += u64::from(decisions.insert(id, decision).is_some());
        }
    }
    listed.incomplete.truncate(EXAMPLES_MAX);
    Ok(decisions)
}

type Decisions = HashMap<[u8; 16], Decision>;

async fn list_slice(
    appliance: &Appliance,
    sent: &Sent,
    slice: Range<u64>,
) -> Result<(Decisions, Listed), Error> {
    let (start_unix_nano, end_unix_nano) = (slice.start, slice.end);
    let mut search =
        SearchTracesRequest { start_unix_nano, end_unix_nano, limit: PAGE, ..SearchTracesRequest::default() };
    let mut decisions = HashMap::new();
    let mut listed = Listed::default();
    for _ in 0..PAGES_MAX {
        let page = appliance.search(search.clone()).await?;
        if !page.incomplete.is_empty() && listed.incomplete.len() < EXAMPLES_MAX {
            listed.incomplete.push(page.incomplete);
        }
        for summary in page.traces {
            let decision = summary.decision();
            let Ok(id) = <[u8; 16]>::try_from(&summary.trace_id[..]) else { continue };
            listed.traces += 1;
            listed.pending += u64::from(decision == Decision::Pending);
            if !sent.claims.contains_key(&id) {
                listed.foreign += 1;
            } else if decisions.insert(id, decision).is_some() {
                listed.listed_twice += 1;
            }
        }
        if page.next_cursor.is_empty() {
            break;
        }
        search.cursor = page.next_cursor;
    }
    Ok((decisions, listed))
}

impl Report {
    fn judge(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            self.traces_compared += 1;
            self.spans_compared += verdict.spans;
            self.traces_missing += u64::from(!verdict.found);
            self.traces_incomplete += u64::from(verdict.findings.spans_missing > 0);
            self.findings.add(verdict.findings);
            if verdict.is_in_trouble() && self.examples.len() < EXAMPLES_MAX {
                self.examples.push(store_model::TraceId(verdict.id).to_string());
            }
        }
    }

    fn judge_shares(&mut self, sent: &Sent, listed: &HashMap<[u8; 16], Decision>) {
        let (mut slow, mut slow_kept, mut plain, mut head) = (0, 0, 0, 0);
        for (id, (_, claim)) in &sent.claims {
            let decision = listed.get(id).copied();
            if claim.slow && !claim.error {
                slow += 1;
                slow_kept += u64::from(decision.is_some_and(|decision| decision != Decision::Pending));
            }
            if claim.plain {
                plain += 1;
                head += u64::from(decision == Some(Decision::KeptHead));
                self.plain_kept_as_slow += u64::from(decision == Some(Decision::KeptSlow));
            }
        }
        self.slow_kept = Some(Share::new(slow_kept, slow));
        self.head_kept = Some(Share::new(head, plain - self.plain_kept_as_slow));
    }

    fn holds(&self, args: &Args) -> bool {
        let listing_holds = self.kept.listed_twice == 0 && self.kept.not_listed == 0;
        let identity_holds =
            self.counts.as_ref().is_some_and(|counts| counts.identity_holds && counts.undecided == 0);
        let share_holds = match (args.expect_head, self.head_kept) {
            (Some(expected), Some(share)) => share.allows(expected),
            (Some(_), None) => false,
            (None, _) => true,
        };
        self.traces_missing == 0
            && self.findings.is_none()
            && listing_holds
            && share_holds
            && (identity_holds || !args.identity)
    }
}

#[cfg(test)]
mod tests;
