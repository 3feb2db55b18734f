//! A model that was tried on the middle of pictures sees the middle only.

use hedge_inference::ContentType;
use hedge_inference::bundle::Input;

fn input(side: u32, fit: &str, crop: &str) -> Result<Input, String> {
    let text = format!(
        "name = \"x\"\nshape = [1, 3, {side}, {side}]\n\
         picture = {{ layout = \"nchw\", color = \"rgb\", fit = \"{fit}\", mean = 0, std = 1{crop} }}"
    );
    toml::from_str(&text).map_err(|error| error.to_string())
}

/// Green with a border of blue, as wide as resizing to 256 and cropping to 224 takes away from the shorter side.
fn bordered(width: u32, height: u32) -> Vec<u8> {
    let border = width.min(height) / 16;
    let inside = |at: u32, side: u32| (border..side - border).contains(&at);
    let pixels: Vec<u8> = (0..width * height)
        .flat_map(|at| if inside(at % width, width) && inside(at / width, height) { [0, 200, 0] } else { [0, 0, 200] })
        .collect();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("a PNG");
    bytes
}

/// The most blue that the model sees, in a hundredth of what there is.
fn blue(picture: &[u8], side: u32, fit: &str, crop: &str) -> f32 {
    let input = input(side, fit, crop).expect("an input");
    let values = input.tensor(&ContentType::Png, picture, None).expect("a tensor").data;
    values[2 * (side * side) as usize..].iter().fold(0.0, |most: f32, value| most.max(*value)) / 2.0
}

#[test]
fn what_resizing_and_cropping_took_away_in_training_does_not_reach_the_model() {
    for fit in ["centre_crop", "stretch"] {
        for (width, height) in [(256, 256), (512, 512), (1024, 1024)] {
            assert_eq!(blue(&bordered(width, height), 224, fit, ", crop = 0.875"), 0.0, "{fit}, {width}x{height}");
        }
        assert_eq!(blue(&bordered(256, 256), 224, fit, ""), 100.0, "{fit}, everything is seen without a crop");
    }
    assert_eq!(blue(&bordered(640, 480), 224, "centre_crop", ", crop = 0.875"), 0.0);
}

#[test]
fn a_crop_that_is_no_share_is_refused_with_the_usual_one() {
    for crop in ["0", "-0.5", "1.01", "224", "nan"] {
        let error = input(224, "centre_crop", &format!(", crop = {crop}")).expect_err("refused");
        assert!(error.contains("above 0 and at most 1; 0.875 is"), "{error}");
    }
    assert!(input(224, "stretch", ", crop = 1").is_ok());
}
