//! `scaling.schedules`: the fewest pods by the time of day. Pure: the time is an argument.
//!
//! Each entry says what counts from its firing on; what counts now is the entry that fired last.

use std::sync::Arc;

use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, YEAR_UPPER_LIMIT};
use k8s_openapi::jiff::civil::DateTime;
use k8s_openapi::jiff::tz::{AmbiguousOffset, TimeZone};
use k8s_openapi::jiff::{SignedDuration, Timestamp, Zoned};
use warren_api::conditions::worker::SCALING_ACTIVE;
use warren_api::worker::Schedule;

use super::inputs::Floor;
use crate::problem::Problem;

/// Reason of condition `ScalingActive` where an entry cannot be read.
pub const SCHEDULE_INVALID: &str = "ScheduleInvalid";
/// The last minute, hour, day of the month, month and day of the week.
const LAST: [u8; 5] = [59, 23, 31, 12, 6];
/// A pattern repeats itself within 28 years.
const EVER: i32 = 30;

/// Schedules as they can be asked.
#[derive(Clone, Debug, Default)]
pub struct Schedules(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    cron: Cron,
    zone: TimeZone,
    floor: Floor,
}

/// A time for which an entry fires. Of what fires as a gap of the clock ends, first come the times in the gap, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Clock {
    LeftOut(DateTime),
    There,
}

impl Schedules {
    /// Reads every entry that can be read, and says what is wrong with the first that cannot, and how many others there are.
    pub fn parse(schedules: &[Schedule]) -> (Self, Option<Problem>) {
        let (mut entries, mut wrong) = (Vec::new(), Vec::new());
        for (index, schedule) in schedules.iter().enumerate() {
            match Entry::parse(schedule) {
                Ok(entry) => entries.push(entry),
                Err(why) => wrong.push((index, why)),
            }
        }
        let problem = wrong.first().map(|(index, why)| {
            let left_out = match wrong.len() - 1 {
                0 => "is left out".to_owned(),
                more => format!("and {more} more are left out, the first"),
            };
            let message = format!(
                "scaling.schedules[{index}] {left_out}: {why}. The other entries and the load still count"
            );
            Problem::new(SCALING_ACTIVE, SCHEDULE_INVALID, message)
        });
        (Self(entries), problem)
    }

    /// The entry that fired last; of several at the same time, the one with most pods.
    pub fn floor(&self, now: Timestamp) -> Option<Floor> {
        let fired: Vec<_> = self.0.iter().filter_map(|entry| Some((entry.fired(now)?, entry))).collect();
        // Clocks of different zones do not compare.
        let is_last = |(at, entry): &&(_, &Entry)| {
            !fired.iter().any(|(later, other)| other.zone == entry.zone && later > at)
        };
        let last = fired.iter().filter(is_last).max_by_key(|((at, _), entry)| (*at, entry.floor.replicas));
        last.map(|(_, entry)| entry.floor.clone())
    }
}

impl Entry {
    fn parse(schedule: &Schedule) -> Result<Self, String> {
        let Schedule { cron: text, timezone, min_replicas } = schedule;
        let zone = TimeZone::get(timezone).map_err(|_| {
            format!("there is no time zone \"{timezone}\": write a name such as \"Europe/Berlin\" or \"UTC\"")
        })?;
        // The library leaves empty items of a list out, and a field without any item would be searched for ever.
        if text.split_whitespace().any(|field| field.split(',').any(str::is_empty)) {
            return Err(format!("cron \"{text}\" has a list with an empty item: leave out that comma"));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(&as_in_a_cron_job(text)).map_err(|error| {
            format!(
                "cron \"{text}\" cannot be read ({error}): write minute hour day month weekday, such as \"0 8 * * 1-5\" for 8:00 from Monday to Friday"
            )
        })?;
        if !fires(&cron) {
            return Err(format!("cron \"{text}\" names a day that does not exist: correct day and month"));
        }
        let schedule = Arc::from(format!("\"{text}\" {timezone}"));
        let floor = Floor { replicas: min_replicas.max(&0).unsigned_abs(), schedule };
        Ok(Self { cron, zone, floor })
    }

    /// When it fired last, and for what time of the clock.
    fn fired(&self, now: Timestamp) -> Option<(Timestamp, Clock)> {
        let now = self.clock(&now.to_zoned(self.zone.clone()));
        let at = self.cron.find_previous_occurrence(&now, true).ok()?;
        if let Some(end) = self.end_of_gap(at) {
            return Some((end, Clock::LeftOut(at)));
        }
        // A time that the clock repeats, and for which lists of hours and minutes fire again, counts when it comes first.
        let first = self.zone.to_ambiguous_timestamp(at).earlier().ok()?;
        Some((first, Clock::There))
    }

    /// What the clock says; where it repeats an hour, all of that has fired.
    fn clock(&self, now: &Zoned) -> DateTime {
        let offset = self.zone.to_ambiguous_timestamp(now.datetime()).offset();
        let AmbiguousOffset::Fold { before, after } = offset else { return now.datetime() };
        let soon = now.timestamp() + SignedDuration::from_secs(1);
        let set_back = self.zone.preceding(soon).next().filter(|_| now.offset() == after);
        // The hour ends with the moment at which the clock is set back.
        let end = set_back.map(|at| before.to_datetime(at.timestamp() - SignedDuration::from_secs(1)));
        end.unwrap_or(now.datetime())
    }

    /// When the clock has left out a time; none where it has not.
    fn end_of_gap(&self, at: DateTime) -> Option<Timestamp> {
        let AmbiguousOffset::Gap { after, .. } = self.zone.to_ambiguous_timestamp(at).offset() else {
            return None;
        };
        let before_gap = after.to_timestamp(at).ok()?;
        self.zone.following(before_gap).next().map(|transition| transition.timestamp())
    }
}

/// What a CronJob takes and the library does not, or otherwise: `5/15`, from 5 on each 15th, `*/1`, and `@midnight`
/// (<https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax>).
fn as_in_a_cron_job(text: &str) -> String {
    if text.trim().eq_ignore_ascii_case("@midnight") {
        return "@daily".to_owned();
    }
    let item = |item: &str, last: Option<&u8>| match (item.split_once('/'), last) {
        // Every day is no day in particular: with a day of the other field that one counts alone.
        (Some(("*", "1")), _) => "*".to_owned(),
        (Some((start, step)), Some(last)) if start.parse::<u8>().is_ok() => format!("{start}-{last}/{step}"),
        _ => item.to_owned(),
    };
    let fields = text.split_whitespace().enumerate().map(|(place, field)| {
        field.split(',').map(|one| item(one, LAST.get(place))).collect::<Vec<_>>().join(",")
    });
    fields.collect::<Vec<_>>().join(" ")
}

/// Whether a pattern ever fires. The library looks up to its last year, which takes as long as thousands of reconciles: the
/// search begins shortly before that.
fn fires(cron: &Cron) -> bool {
    let begin = i16::try_from(YEAR_UPPER_LIMIT - EVER)
        .ok()
        .and_then(|year| DateTime::new(year, 1, 1, 0, 0, 0, 0).ok());
    begin.is_some_and(|begin| cron.find_next_occurrence(&begin, true).is_ok())
}

/// A Worker's schedules with what they say, looked up once a minute.
#[derive(Debug, Default)]
pub struct Timetable {
    given: Vec<Schedule>,
    schedules: Schedules,
    wrong: Option<Problem>,
    minute: Option<i64>,
    floor: Option<Floor>,
}

impl Timetable {
    /// The floor at `now` by the schedules `given`.
    pub fn floor(&mut self, given: &[Schedule], now: Timestamp) -> Option<Floor> {
        if self.given != given {
            self.given = given.to_vec();
            (self.schedules, self.wrong) = Schedules::parse(given);
            self.minute = None;
        }
        // No entry fires within a minute.
        let minute = now.as_second().div_euclid(60);
        if self.minute.replace(minute) != Some(minute) {
            self.floor = self.schedules.floor(now);
        }
        self.floor.clone()
    }

    /// What is wrong with the first of the last schedules that cannot be read.
    pub fn wrong(&self) -> Option<Problem> {
        self.wrong.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str, timezone: &str, min_replicas: i32) -> Schedule {
        Schedule { cron: cron.to_owned(), timezone: timezone.to_owned(), min_replicas }
    }

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn floor(schedules: &[Schedule], time: &str) -> Option<u32> {
        let (schedules, wrong) = Schedules::parse(schedules);
        assert_eq!(wrong, None);
        schedules.floor(at(time)).map(|floor| floor.replicas)
    }

    #[test]
    fn what_fired_last_counts_until_another_entry_fires() {
        let day = [schedule("0 8 * * 1-5", "UTC", 5), schedule("0 18 * * *", "UTC", 1)];
        // 2026-11-23 is a Monday.
        for (time, expected) in [
            ("2026-11-23T07:59:59Z", 1),
            ("2026-11-23T08:00:00Z", 5),
            ("2026-11-23T17:59:59Z", 5),
            ("2026-11-23T18:00:00Z", 1),
            ("2026-11-28T12:00:00Z", 1),
        ] {
            assert_eq!(floor(&day, time), Some(expected), "{time}");
        }
    }

    #[test]
    fn one_entry_alone_counts_always_and_none_says_nothing() {
        assert_eq!(floor(&[schedule("0 8 1 1 *", "UTC", 3)], "2026-11-23T00:00:00Z"), Some(3));
        assert_eq!(floor(&[], "2026-11-23T00:00:00Z"), None);
    }

    #[test]
    fn entries_at_the_same_time_count_with_the_most_pods() {
        let both = [
            schedule("0 8 * * *", "UTC", 2),
            schedule("0 8 * * 1", "UTC", 9),
            schedule("0 8 * * *", "UTC", 4),
        ];
        assert_eq!(floor(&both, "2026-11-23T09:00:00Z"), Some(9));
        assert_eq!(floor(&both, "2026-11-24T09:00:00Z"), Some(4));
        let zones = [schedule("0 8 * * *", "UTC", 7), schedule("0 9 * * *", "Europe/Berlin", 3)];
        assert_eq!(floor(&zones, "2026-11-23T08:30:00Z"), Some(7));
    }

    #[test]
    fn a_step_from_a_number_on_and_at_midnight_are_read_as_in_a_cron_job() {
        for (text, meant) in [
            ("5/15 * * * *", "5-59/15 * * * *"),
            ("0,7/20 8/2 3/9,1 2/5 *", "0,7-59/20 8-23/2 3-31/9,1 2-12/5 *"),
            // Not on Sunday.
            ("0 8 * * 1/2", "0 8 * * 1-6/2"),
            ("*/5 0-9/3 * * MON-FRI", "*/5 0-9/3 * * MON-FRI"),
            ("0 8 */1 * 1-5", "0 8 * * 1-5"),
            ("0 8 */2 * 1-5", "0 8 */2 * 1-5"),
            (" @Midnight ", "@daily"),
            ("@hourly", "@hourly"),
        ] {
            assert_eq!(as_in_a_cron_job(text), meant);
            assert!(Entry::parse(&schedule(text, "UTC", 1)).is_ok(), "{text}");
        }
        let short = [schedule("0 8 * * 1/2", "UTC", 5), schedule("0 9 * * *", "UTC", 1)];
        // 2026-11-22 is a Sunday.
        assert_eq!(floor(&short, "2026-11-22T08:30:00Z"), Some(1));
        assert_eq!(floor(&short, "2026-11-23T08:30:00Z"), Some(5));
        for text in ["5/0 * * * *", "60/5 * * * *", "/5 * * * *", "300/5 * * * *"] {
            assert!(Entry::parse(&schedule(text, "UTC", 1)).is_err(), "{text}");
        }
    }

    #[test]
    fn time_zones_follow_summer_and_winter() {
        let day = [schedule("0 8 * * *", "Europe/Berlin", 5), schedule("0 9 * * *", "Europe/Berlin", 0)];
        assert_eq!(floor(&day, "2026-07-01T06:00:00Z"), Some(5));
        assert_eq!(floor(&day, "2026-07-01T07:00:00Z"), Some(0));
        assert_eq!(floor(&day, "2026-12-01T06:00:00Z"), Some(0));
        assert_eq!(floor(&day, "2026-12-01T07:00:00Z"), Some(5));
    }

    #[test]
    fn the_program_brings_its_own_time_zones() {
        let ours = k8s_openapi::jiff::tz::TimeZoneDatabase::bundled();
        assert!(ours.get("Europe/Berlin").is_ok() && ours.get("UTC").is_ok());
    }

    #[test]
    fn a_time_that_the_clock_leaves_out_or_repeats_fires_all_the_same() {
        // 2:30 does not exist in Berlin on 2026-03-29, and is there twice on 2026-10-25.
        let night = [schedule("30 2 * * *", "Europe/Berlin", 5), schedule("0 12 * * *", "Europe/Berlin", 0)];
        assert_eq!(floor(&night, "2026-03-29T02:00:00Z"), Some(5));
        assert_eq!(floor(&night, "2026-10-25T02:00:00Z"), Some(5));
    }

    #[test]
    fn what_the_clock_leaves_out_fires_before_what_comes_after_the_gap() {
        let from_to = |from, to| [schedule(from, "Europe/Berlin", 5), schedule(to, "Europe/Berlin", 0)];
        for (from, to) in
            [("0 2 * * *", "0 3 * * *"), ("30 2 * * *", "0 3 * * *"), ("0 2 * * *", "45 2 * * *")]
        {
            assert_eq!(floor(&from_to(from, to), "2026-03-29T00:59:00Z"), Some(0), "{from}, {to}");
            assert_eq!(floor(&from_to(from, to), "2026-03-29T01:00:00Z"), Some(0), "{from}, {to}");
        }
        for list in ["30 2,14 * * *", "0,30 2 * * *", "*/20 2-2 * * *"] {
            let until_evening = from_to(list, "0 20 * * *");
            assert_eq!(floor(&until_evening, "2026-03-29T00:59:00Z"), Some(0), "{list}");
            assert_eq!(floor(&until_evening, "2026-03-29T01:00:00Z"), Some(5), "{list}");
        }
        let zones = [schedule("30 2 * * *", "Europe/Berlin", 7), schedule("0 1 * * *", "UTC", 3)];
        assert_eq!(floor(&zones, "2026-03-29T01:30:00Z"), Some(7));
        // The hour that is there twice: what has fired has fired.
        assert_eq!(floor(&from_to("0,30 2 * * *", "45 2 * * *"), "2026-10-25T02:00:00Z"), Some(0));
        assert_eq!(floor(&from_to("30 2 * * *", "0 20 * * *"), "2026-10-25T01:10:00Z"), Some(5));
        for time in ["2026-10-25T00:45:00Z", "2026-10-25T01:10:00Z", "2026-10-25T01:40:00Z"] {
            assert_eq!(floor(&from_to("0,45 2 * * *", "30 2 * * *"), time), Some(5), "{time}");
            assert_eq!(floor(&from_to("5 2 * * *", "*/10 * * * *"), time), Some(0), "{time}");
        }
    }

    #[test]
    fn the_29th_of_february_is_remembered_for_years() {
        let leap = [schedule("0 0 29 2 *", "UTC", 7)];
        assert_eq!(floor(&leap, "2027-12-31T00:00:00Z"), Some(7));
    }

    #[test]
    fn what_cannot_be_read_is_said_with_what_to_write_and_leaves_the_rest() {
        for (wrong, said) in [
            (schedule("0 25 * * *", "UTC", 1), "0 8 * * 1-5"),
            (schedule("* * * * * *", "UTC", 1), "minute hour day month weekday"),
            (schedule("0 8 * * 1-5 2027", "UTC", 1), "minute hour day month weekday"),
            (schedule("soon", "UTC", 1), "cannot be read"),
            (schedule("0 8 * * *", "Europe/Atlantis", 1), "Europe/Berlin"),
            (schedule("0 0 30 2 *", "UTC", 1), "does not exist"),
            (schedule(", * * * *", "UTC", 1), "empty item"),
            (schedule("0 8,,9 * * *", "UTC", 1), "empty item"),
        ] {
            let (schedules, problem) = Schedules::parse(&[wrong.clone(), schedule("0 8 * * *", "UTC", 3)]);
            let problem = problem.unwrap();
            assert_eq!((problem.condition, problem.reason), (SCALING_ACTIVE, SCHEDULE_INVALID));
            assert!(problem.message.contains(said), "{}", problem.message);
            assert!(problem.message.contains("schedules[0] is left out"), "{}", problem.message);
            let both = Schedules::parse(&[wrong.clone(), wrong]).1.unwrap().message;
            assert!(both.contains("schedules[0] and 1 more are left out, the first: "), "{both}");
            assert_eq!(schedules.floor(at("2026-11-23T09:00:00Z")).map(|floor| floor.replicas), Some(3));
        }
    }

    #[test]
    fn what_never_fires_is_found_out_without_a_long_search() {
        let never = |minute| schedule(&format!("{minute} 0 31 2,4,6,9,11 *"), "Europe/Berlin", 1);
        let since = std::time::Instant::now();
        let (schedules, wrong) = Schedules::parse(&(0..20).map(never).collect::<Vec<_>>());
        assert!(since.elapsed().as_secs() < 2, "{:?}", since.elapsed());
        assert!(schedules.0.is_empty() && wrong.unwrap().message.contains("a day that does not exist"));
        // What fires most seldom: a 29th of February on a certain day of the week.
        for day in 0..7 {
            let (schedules, wrong) = Schedules::parse(&[schedule(&format!("0 0 29 2 +{day}"), "UTC", 1)]);
            assert_eq!((schedules.0.len(), wrong), (1, None), "{day}");
        }
    }

    #[test]
    fn a_timetable_follows_the_time_and_the_spec() {
        let mut table = Timetable::default();
        let day = [schedule("0 8 * * *", "UTC", 5), schedule("0 18 * * *", "UTC", 1)];
        let mut at = |given: &[Schedule], time: &str| table.floor(given, at(time)).map(|f| f.replicas);
        assert_eq!(at(&day, "2026-11-23T07:59:59Z"), Some(1));
        assert_eq!(at(&day, "2026-11-23T08:00:00Z"), Some(5));
        assert_eq!(at(&day[1..], "2026-11-23T08:00:01Z"), Some(1));
        assert_eq!(at(&[], "2026-11-23T08:00:02Z"), None);
        assert_eq!(at(&[schedule("soon", "UTC", 1)], "2026-11-23T08:00:03Z"), None);
        assert_eq!(table.wrong().unwrap().reason, SCHEDULE_INVALID);
        table.floor(&day, Timestamp::UNIX_EPOCH);
        assert_eq!(table.wrong(), None);
    }

    #[test]
    fn of_several_entries_that_cannot_be_read_the_first_is_named() {
        let wrong =
            [schedule("0 8 * * *", "UTC", 3), schedule("soon", "UTC", 1), schedule("later", "UTC", 1)];
        assert!(Schedules::parse(&wrong).1.unwrap().message.contains("schedules[1]"));
    }

    #[test]
    fn an_hour_that_the_clock_repeats_is_one_hour_as_it_comes_first() {
        let from_to = |from, to| [schedule(from, "Europe/Berlin", 5), schedule(to, "Europe/Berlin", 0)];
        // In Berlin 2:10 comes at 0:10 and at 1:10, and 3:00 at 2:00.
        for (time, five_past, half_past, three) in [
            ("2026-10-25T00:10:00Z", 5, 0, 0),
            ("2026-10-25T00:30:00Z", 5, 5, 0),
            ("2026-10-25T01:00:00Z", 5, 5, 0),
            ("2026-10-25T01:59:59Z", 5, 5, 0),
            ("2026-10-25T02:00:00Z", 5, 5, 5),
        ] {
            let found = ["5 2 * * *", "30 2 * * *", "0 3 * * *"]
                .map(|from| floor(&from_to(from, "0 20 * * *"), time));
            assert_eq!(found, [Some(five_past), Some(half_past), Some(three)], "{time}");
        }
        let zones = [schedule("30 2 * * *", "Europe/Berlin", 7), schedule("0 1 * * *", "UTC", 3)];
        assert_eq!(floor(&zones, "2026-10-25T00:40:00Z"), Some(7));
        assert_eq!(floor(&zones, "2026-10-25T01:10:00Z"), Some(3), "half past two was before it");
    }

    #[test]
    fn a_timetable_follows_the_time_within_an_hour() {
        let mut table = Timetable::default();
        let hour = [schedule("0 8 * * *", "UTC", 5), schedule("30 8 * * *", "UTC", 1)];
        let mut at = |time: &str| table.floor(&hour, at(time)).map(|f| f.replicas);
        assert_eq!((at("2026-11-23T08:29:59Z"), at("2026-11-23T08:30:00Z")), (Some(5), Some(1)));
    }

    #[test]
    fn what_fired_in_summer_counts_also_at_the_moment_at_which_the_clock_is_set_back() {
        let year = [schedule("0 12 1 7 *", "Europe/Berlin", 5), schedule("0 12 1 2 *", "Europe/Berlin", 0)];
        for time in ["2026-10-25T00:59:59Z", "2026-10-25T01:00:00Z", "2026-10-25T01:00:01Z"] {
            assert_eq!(floor(&year, time), Some(5), "{time}");
        }
    }
}
