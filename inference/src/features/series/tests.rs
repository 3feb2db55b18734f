use super::super::Input;
use super::*;

const TWO: &str = "channels = [\"x\", \"y\"]\nlayout = \"time_channels\"";

fn input(shape: &str, series: &str) -> Result<Input, String> {
    let text = format!("name = \"x\"\nshape = {shape}\n[series]\n{series}");
    toml::from_str(&text).map_err(|error: toml::de::Error| error.message().to_owned())
}

#[track_caller]
fn check(shape: &str, series: &str, text: &str, expected: &[f32]) {
    let input = input(shape, series).expect(series);
    let tensor = input.tensor(&ContentType::Csv, text.as_bytes(), None).expect(text);
    assert_eq!(tensor.data, expected, "{series}: {text}");
    assert_eq!(format!("{:?}", tensor.shape), shape);
}

#[track_caller]
fn check_refused(shape: &str, series: &str, text: &str, words: &str) {
    let input = input(shape, series).expect(series);
    let error = input.tensor(&ContentType::Csv, text.as_bytes(), None).expect_err(words).to_string();
    assert!(error.contains(words), "`{error}` does not say `{words}`");
}

#[test]
fn rows_become_the_models_numbers_in_its_order() {
    check("[1, 3, 2]", TWO, "x,y\n1,2\n3,4\n5,6\n", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let other = "channels = 2\nlayout = \"channels_time\"\nmean = [1, 0]\nstd = 2";
    check("[1, 2, 3]", other, "1,2\n3,4\n5,6\n", &[0.0, 1.0, 2.0, 1.0, 2.0, 3.0]);
    check("[1, 2]", "channels = 2\nmean = 1", "1,2\n", &[0.0, 1.0]);
    check("[1, 1, 3]", "channels = 1", "1\n2\n3\n", &[1.0, 2.0, 3.0]);
    // Zeros where nothing was, whatever the mean.
    let short = "channels = 1\nmean = 5\nfit = \"start\"";
    check("[1, 3]", short, "1\n2\n", &[-4.0, -3.0, 0.0]);
    check("[1, 3]", "channels = 1\nfit = \"end\"", "1\n2\n3\n4\n", &[2.0, 3.0, 4.0]);
    check_refused("[1, 3]", "channels = 1", "1\n2\n3\n4\n", "it has 4 rows, and the model takes exactly 3");
}

#[test]
fn what_is_missing_is_filled_up_to_the_longest_gap() {
    let fill = |how: &str, most: usize| format!("channels = 1\nfill = \"{how}\"\nmissing_rows_max = {most}");
    check("[1, 4]", &fill("linear", 2), "t\n1\n\"\"\nnan\n4\n", &[1.0, 2.0, 3.0, 4.0]);
    check("[1, 4]", &fill("hold", 2), "1\nNA\nna\n4\n", &[1.0, 1.0, 1.0, 4.0]);
    // Nothing lies beyond the ends: the nearest is held.
    check("[1, 4]", &fill("linear", 1), "nan\n2\n3\nnan\n", &[2.0, 2.0, 3.0, 3.0]);
    let one = fill("linear", 1);
    check_refused("[1, 4]", &one, "1\nnan\nnan\n4\n", "channel `1` has no value for 2 rows; `missing_rows_max` is 1");
    check_refused("[1, 4]", &one, "1\n2\nnan\nnan\n", "no value for 2 rows");
    check_refused("[1, 4]", &one, "nan\nnan\n3\n4\n", "no value for 2 rows");
    check_refused("[1, 2, 2]", TWO, "x,y\n1,nan\n2,nan\n", "channel `y` has no value for 2 rows");
}

#[test]
fn rows_with_a_time_are_brought_to_even_steps() {
    let timed = |rest: &str| format!("channels = [\"x\"]\ntime = {{ column = \"t\", rate = 10 }}\n{rest}");
    // Two in the first step, none in the third; the time is that of a real clock.
    let rows = "t,x\n1700000000.00,1\n1700000000.05,3\n1700000000.1,4\n1700000000.3,8\n";
    check("[1, 4]", &timed("missing_rows_max = 1"), rows, &[2.0, 4.0, 6.0, 8.0]);
    check("[1, 4]", &timed("missing_rows_max = 1\nfill = \"hold\""), rows, &[2.0, 4.0, 4.0, 8.0]);
    check_refused("[1, 4]", &timed(""), rows, "no rows for 1 steps before row 4");
    // A clock that jumps by years costs no memory.
    let jump = "t,x\n0,1\n1e300,2\n";
    check_refused("[1, 4]", &timed("missing_rows_max = 16777216"), jump, "no rows for");
    check_refused("[1, 4]", &timed(""), "t,x\n5,1\n4,2\n", "row 2 has the time 4, which is before");
    let ms = "channels = [\"x\"]\ntime = { column = \"t\", rate = 10, unit = \"ms\" }";
    check("[1, 3]", ms, "t,x\n1700000000000,1\n1700000000101,2\n1700000000299,3\n", &[1.0, 2.0, 3.0]);
}

#[test]
fn a_manifest_that_cannot_be_meant_is_refused_by_name() {
    for (shape, series, words) in [
        ("[1, 7]", "channels = 2", "`shape` = [1, 7] does not hold rows of 2"),
        ("[1, 2, 3]", "channels = 2", "`layout` is missing"),
        ("[1, 2, 3]", "channels = 2\nlayout = \"time_channels\"", "not of 2 `channels` in this `layout`"),
        ("[1, 2]", "channels = [\"x\", \"x\"]", "`x` twice"),
        ("[1, 2]", "channels = 0", "0 `channels`"),
        ("[1, 2]", "channels = 2\nstd = [1, 0]", "`std` is divided by"),
        ("[1, 2]", "channels = 2\nmean = [1, 2, 3]", "`mean` has 3 numbers for 2 channels"),
        ("[1, 2]", "channels = 2\ntime = { column = \"t\", rate = 0 }", "`time.rate` = 0"),
        ("[1, 2]", "channels = [\"x\", \"t\"]\ntime = { column = \"t\", rate = 1 }", "`t` is the time"),
        ("[1, 2]", "channels = 2\nspeed = 1", "speed"),
    ] {
        let error = input(shape, series).expect_err(words);
        assert!(error.contains(words), "`{error}` does not say `{words}`");
    }
}

#[test]
fn a_file_of_vectors_holds_a_sample_a_row() {
    let vectors = input("[1, 2]", "channels = 2").expect("valid");
    let samples = vectors.samples(b"1,2\n3,4\n").expect("two samples");
    assert_eq!(samples.iter().map(|one| one.data.clone()).collect::<Vec<_>>(), [[1.0, 2.0], [3.0, 4.0]]);
    let series = input("[1, 2, 2]", TWO).expect("valid");
    assert_eq!(series.samples(b"[[1, 2], [3, 4]]").expect("one sample").len(), 1);
}
