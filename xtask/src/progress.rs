//! Steps on a terminal: one line each, which spins while the step runs and stays when it has ended.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use warren_tests::progress::{Progress, Step};

/// Draws on standard error; where that is no terminal, each step is a line when it has ended.
pub(crate) struct Terminal {
    bars: MultiProgress,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        Self { bars: MultiProgress::new() }
    }

    /// Shows a line above the steps that run.
    #[allow(clippy::print_stderr, reason = "this is the part that writes for the reader")]
    pub(crate) fn show(&self, line: &str) {
        self.bars.suspend(|| eprintln!("{line}"));
    }

    /// Prints to standard output, so that what is printed can be used by another program.
    #[allow(
        clippy::print_stdout,
        clippy::unused_self,
        reason = "this is the part that writes for the reader"
    )]
    pub(crate) fn print(&self, text: &str) {
        println!("{text}");
    }
}

impl Progress for Terminal {
    fn begin(&self, title: &str) -> Box<dyn Step> {
        let bar = self.bars.add(ProgressBar::new_spinner());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner:.cyan} {prefix} {elapsed:.dim} {wide_msg:.dim}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Box::new(Spinner { bar, bars: self.bars.clone(), title: title.to_owned(), since: Instant::now() })
    }
}

struct Spinner {
    bar: ProgressBar,
    bars: MultiProgress,
    title: String,
    since: Instant,
}

impl Spinner {
    #[allow(clippy::print_stderr, reason = "this is the part that writes for the reader")]
    fn end(&self, mark: char, text: &str) {
        self.bar.finish_and_clear();
        let note = if text.is_empty() { String::new() } else { format!(": {text}") };
        let line = format!("{mark} {}{note} ({:.1} s)", self.title, self.since.elapsed().as_secs_f32());
        self.bars.suspend(|| eprintln!("{line}"));
    }
}

impl Step for Spinner {
    fn note(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }
    fn done(self: Box<Self>, text: &str) {
        self.end('✓', text);
    }
    fn failed(self: Box<Self>) {
        self.end('✗', "failed");
    }
}

/// Shows an error with its causes, one a line, and without the stack that Rust would print.
#[allow(clippy::print_stderr, reason = "this is the part that writes for the reader")]
pub(crate) fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}
