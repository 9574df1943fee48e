//! `strftime_now`, which templates use for "Today Date". The caller may pass the time (browsers, tests, reproducible
//! prompts); otherwise it is the clock's in UTC, because the prompt should not reveal the machine's time zone.
//! Rejected: a date crate, because the dozen directives that templates use are less code than the dependency.

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A local time: seconds since 1970-01-01 00:00 (the offset to UTC must be added).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Seconds since 1970-01-01 00:00, local time.
    pub unix_seconds: i64,
}

impl LocalTime {
    /// The current time in UTC; `None` where there is no clock (WebAssembly).
    pub fn utc_now() -> Option<Self> {
        #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
        return None;
        #[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .ok()
            .and_then(|d| i64::try_from(d.as_secs()).ok())
            .map(|unix_seconds| Self { unix_seconds })
    }

    /// Python's `strftime` for this time, with English names; unknown directives stay unchanged.
    pub fn format(self, format: &str) -> String {
        let date = Date::of(self.unix_seconds);
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (mut directive, mut padded) = (chars.next(), true);
            if directive == Some('-') {
                (directive, padded) = (chars.next(), false);
            }
            match directive.and_then(|d| date.directive(d, padded)) {
                Some(text) => out.push_str(&text),
                None => {
                    out.push_str(if padded { "%" } else { "%-" });
                    out.extend(directive);
                }
            }
        }
        out
    }
}

struct Date {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    day_of_year: i64,
    seconds: i64,
}

impl Date {
    fn of(unix_seconds: i64) -> Self {
        let days = unix_seconds.div_euclid(86_400);
        // Years are counted from March, so that the leap day is the last day of a year; 719468 days lie between
        // 0000-03-01 and 1970-01-01.
        let shifted = days.saturating_add(719_468);
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let day_of_year = if month > 2 { from_march + 60 + i64::from(leap) } else { from_march - 305 };
        Self {
            year,
            month: usize::try_from(month - 1).unwrap_or(0),
            day: from_march - (153 * month_from_march + 2) / 5 + 1,
            weekday: usize::try_from((days + 4).rem_euclid(7)).unwrap_or(0),
            day_of_year,
            seconds: unix_seconds.rem_euclid(86_400),
        }
    }

    fn directive(&self, directive: char, padded: bool) -> Option<String> {
        let two = |n: i64| if padded { format!("{n:02}") } else { n.to_string() };
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let month = self.month as i64 + 1;
        Some(match directive {
            'd' => two(self.day),
            'm' => two(month),
            'y' => two(self.year.rem_euclid(100)),
            'Y' => self.year.to_string(),
            'H' => two(hour),
            'I' => two((hour + 11) % 12 + 1),
            'M' => two(minute),
            'S' => two(second),
            'p' => {
                if hour < 12 {
                    "AM".into()
                } else {
                    "PM".into()
                }
            }
            'j' => {
                if padded {
                    format!("{:03}", self.day_of_year)
                } else {
                    self.day_of_year.to_string()
                }
            }
            'a' => DAYS[self.weekday][..3].into(),
            'A' => DAYS[self.weekday].into(),
            'b' | 'h' => MONTHS[self.month][..3].into(),
            'B' => MONTHS[self.month].into(),
            'e' => format!("{:2}", self.day),
            'F' => format!("{}-{month:02}-{:02}", self.year, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'D' => format!("{month:02}/{:02}/{:02}", self.day, self.year.rem_euclid(100)),
            'w' => self.weekday.to_string(),
            'Z' | 'z' => String::new(),
            '%' => "%".into(),
            _ => return None,
        })
    }
}

pub(crate) fn strftime_now(now: Option<LocalTime>, format: &str) -> Result<String, Error> {
    let missing = || {
        Error::new(
            ErrorKind::InvalidOperation,
            "the template asks for the date; pass the local time with the conversation",
        )
    };
    now.or_else(LocalTime::utc_now).map(|time| time.format(format)).ok_or_else(missing)
}
