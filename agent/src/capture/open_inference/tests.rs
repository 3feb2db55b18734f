//! What Open Inference Protocol clients send, over a real socket.

use serde_json::{Value, json};

use crate::capture::http::tests::{Server, server};

async fn infer(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let head = format!("POST {path} HTTP/1.1");
    let (status, _, body) = server.request(&head, body.to_string().as_bytes()).await;
    (status, serde_json::from_slice(&body).expect("JSON"))
}

fn input(shape: Value, data: Value) -> Value {
    json!({ "id": "7", "inputs": [{ "name": "x", "shape": shape, "datatype": "FP32", "data": data }] })
}

#[tokio::test]
async fn server_and_model_describe_themselves() {
    let server = server("").await;
    for (path, expected) in [
        ("/v2", json!("hedge-agent")),
        ("/v2/models/m", json!("m")),
        ("/v2/models/m/versions/1", json!("m")),
        ("/v2/models/m/ready", json!("m")),
    ] {
        let (status, _, body) = server.request(&format!("GET {path} HTTP/1.1"), &[]).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((status, &body["name"]), (200, &expected), "{path}");
    }
    for (path, expected) in [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/m/versions/1/ready", 200),
        ("/v2/models/n", 404),
        ("/v2/models/n/ready", 404),
        ("/v2/models/m/versions/2", 404),
    ] {
        assert_eq!(server.request(&format!("GET {path} HTTP/1.1"), &[]).await.0, expected, "{path}");
    }
}

#[tokio::test]
async fn scores_come_back_exactly_for_flat_nested_and_several_samples() {
    let server = server("").await;
    let (status, body) = infer(&server, "/v2/models/m/infer", &input(json!([1, 3]), json!([0.1, 0, 2]))).await;
    let expected = json!({
        "model_name": "m", "model_version": "1", "id": "7",
        "outputs": [{ "name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.1, 0.1] }],
    });
    assert_eq!((status, body), (200, expected));
    let nested = input(json!([2, 3]), json!([[1, 2, 3], [4, 5, 6]]));
    let (status, body) = infer(&server, "/v2/models/m/versions/1/infer", &nested).await;
    assert_eq!((status, &body["outputs"][0]["shape"]), (200, &json!([2, 2])));
    assert_eq!(body["outputs"][0]["data"], json!([6.0, 1.0, 15.0, 4.0]));
    assert_eq!(server.fake.sample_count(), 0, "nothing is judged or deferred");
}

#[tokio::test]
async fn binary_tensors_go_both_ways() {
    let server = server("").await;
    let document = json!({
        "inputs": [{ "name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": { "binary_data_size": 12 } }],
        "outputs": [{ "name": "y", "parameters": { "binary_data": true } }],
    })
    .to_string();
    let raw: Vec<u8> = [1.5_f32, 2.0, f32::INFINITY].iter().flat_map(|number| number.to_le_bytes()).collect();
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nInference-Header-Content-Length: {}", document.len());
    let (status, head, body) = server.request(&head, &[document.as_bytes(), &raw].concat()).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let json_length = head.split("inference-header-content-length: ").nth(1).expect("the header");
    let json_length: usize = json_length.lines().next().expect("a line").parse().expect("a number");
    let (document, raw) = body.split_at(json_length);
    let document: Value = serde_json::from_slice(document).expect("JSON");
    assert_eq!(document["outputs"][0]["parameters"]["binary_data_size"], 8);
    let numbers: Vec<f32> = raw.chunks(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect();
    assert_eq!(numbers, [f32::INFINITY, 1.5]);
}

#[tokio::test]
async fn what_a_client_asks_of_the_output_goes_before_what_it_asks_of_all() {
    let server = server("").await;
    let numbers = json!([2.1, 0.1]);
    for (of_all, of_output, as_json) in [
        (json!({}), json!({}), true),
        (json!({ "binary_data_output": true }), json!({}), false),
        (json!({ "binary_data_output": true }), json!({ "binary_data": false }), true),
        (json!({ "binary_data_output": false }), json!({ "binary_data": true }), false),
        (json!({ "binary_data_output": true }), json!({ "binary_data": null }), false),
    ] {
        let mut document = input(json!([1, 3]), json!([0.1, 0, 2]));
        document["parameters"] = of_all.clone();
        document["outputs"] = json!([{ "name": "y", "parameters": of_output }]);
        let head = "POST /v2/models/m/infer HTTP/1.1";
        let (status, head, body) = server.request(head, document.to_string().as_bytes()).await;
        let asked = format!("{of_all} and {of_output}");
        assert_eq!(status, 200, "{asked}");
        assert_eq!(head.contains("inference-header-content-length"), !as_json, "{asked}");
        if as_json {
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(body["outputs"][0]["data"], numbers, "{asked}");
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_the_model_is_named() {
    let server = server("").await;
    let with = |change: fn(&mut Value)| {
        let mut document = input(json!([1, 3]), json!([1, 2, 3]));
        change(&mut document);
        document
    };
    for (document, text) in [
        (with(|d| d["inputs"][0]["shape"] = json!([3])), "takes [1, 3]"),
        (with(|d| d["inputs"][0]["shape"] = json!([1, 4])), "does not hold the 3 numbers"),
        (with(|d| d["inputs"][0]["shape"] = json!([usize::MAX, 3])), "does not hold the 3 numbers"),
        (with(|d| d["inputs"][0]["shape"] = json!([-1, 3])), "not an inference request"),
        (input(json!([0, 3]), json!([])), "not [0, 3]"),
        (with(|d| d["inputs"][0]["name"] = json!("z")), "has no input `z`; its input is `x`"),
        (with(|d| d["inputs"][0]["datatype"] = json!("INT8")), "only FP32"),
        (with(|d| d["inputs"][0]["data"] = json!(["a", 1, 2])), "numbers, in one array"),
        (with(|d| d["inputs"][0]["data"] = json!([1e300, 1, 2])), "beyond FP32"),
        (with(|d| d["inputs"][0]["data"] = Value::Null), "needs either"),
        (with(|d| d["inputs"] = json!([])), "exactly one input"),
        (with(|d| d["outputs"] = json!([{ "name": "z" }])), "has no output `z`"),
        (json!("text"), "not an inference request"),
    ] {
        let (status, body) = infer(&server, "/v2/models/m/infer", &document).await;
        let error = body["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(text), "{document}: {status} {body}");
    }
    let (status, body) = infer(&server, "/v2/models/n/infer", &input(json!([1, 3]), json!([1, 2, 3]))).await;
    assert_eq!((status, body), (404, json!({ "error": "there is no model named `n`; there are: m" })));
}
