//! How long work tells what it is doing, without knowing who shows it.

use std::time::Instant;

use anyhow::Result;

/// Shows steps as they begin and end: `cargo xtask` draws spinners, tests print lines.
pub trait Progress: Send + Sync {
    /// A step begins; it is shown until the returned value says how it ended.
    fn begin(&self, title: &str) -> Box<dyn Step>;
}

/// One step that has begun.
pub trait Step: Send + Sync {
    /// What the step is doing now.
    fn note(&self, text: &str);
    /// The step ended well; `text` says with what, and may be empty.
    fn done(self: Box<Self>, text: &str);
    /// The step failed. The error itself is the caller's to show.
    fn failed(self: Box<Self>);
}

/// Runs `work` as a step, and ends the step the way the work ended.
pub async fn step<T>(
    progress: &dyn Progress,
    title: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let step = progress.begin(title);
    ended(step, work.await.map(|value| (value, String::new())))
}

/// The same for work that tells what it is doing, and with what it ended; that may be empty.
pub async fn step_noting<T>(
    progress: &dyn Progress,
    title: &str,
    work: impl AsyncFnOnce(&(dyn Fn(&str) + Sync)) -> Result<(T, String)>,
) -> Result<T> {
    let step = progress.begin(title);
    let result = work(&|text| step.note(text)).await;
    ended(step, result)
}

fn ended<T>(step: Box<dyn Step>, result: Result<(T, String)>) -> Result<T> {
    match &result {
        Ok((_, text)) => step.done(text),
        Err(_) => step.failed(),
    }
    result.map(|(value, _)| value)
}

/// Writes one line to standard error when a step ends: for tests, whose output is shown when they fail.
pub struct Lines;

impl Progress for Lines {
    fn begin(&self, title: &str) -> Box<dyn Step> {
        Box::new(Line { title: title.to_owned(), since: Instant::now() })
    }
}

struct Line {
    title: String,
    since: Instant,
}

impl Line {
    #[allow(clippy::print_stderr, reason = "this is the part that writes for the reader")]
    fn end(&self, how: &str) {
        eprintln!("{how:>6} {:5.1} s  {}", self.since.elapsed().as_secs_f32(), self.title);
    }
}

impl Step for Line {
    fn note(&self, _text: &str) {}
    fn done(self: Box<Self>, _text: &str) {
        self.end("ok");
    }
    fn failed(self: Box<Self>) {
        self.end("FAILED");
    }
}
