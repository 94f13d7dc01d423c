package manifest

import (
	"fmt"
	"net"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
)

// sinkView is a sink as its rules see it.
type sinkView struct {
	sink    *v1alpha1.Sink
	vertex  string
	serving bool
	at      path
}

var sinkRules = []func(*report, sinkView){
	sinksAreValid,
	sinkRetryIsValid,
	fallbackHasAUse,
}

func checkSink(r *report, s sinkView) {
	for _, rule := range sinkRules {
		rule(r, s)
	}
}

func sinksAreValid(r *report, v sinkView) {
	checkAbstractSink(r, &v.sink.AbstractSink, v, v1alpha1.RoleUDSink, v.at)
	if v.sink.Fallback != nil {
		checkAbstractSink(r, v.sink.Fallback, v, v1alpha1.RoleFallbackSink, v.at.at("fallback"))
	}
	if v.sink.OnSuccess != nil {
		checkAbstractSink(r, v.sink.OnSuccess, v, v1alpha1.RoleOnSuccessSink, v.at.at("onSuccess"))
	}
}

func checkAbstractSink(r *report, s *v1alpha1.AbstractSink, v sinkView, role v1alpha1.Role, at path) {
	exactlyOne(r, at, CodeSinkType, "a sink", []choice{
		{"log", s.Log != nil}, {"blackhole", s.Blackhole != nil}, {"kafka", s.Kafka != nil}, {"pulsar", s.Pulsar != nil},
		{"sqs", s.Sqs != nil}, {"udsink", s.UDSink != nil}, {"serve", s.Serve != nil}, {"file", s.File != nil},
		{"stdout", s.Stdout != nil}, {"jetstream", s.JetStream != nil}, {"nats", s.Nats != nil}, {"stream", s.Stream != nil},
	})
	if k := s.Kafka; k != nil {
		checkKafka(r, k.Brokers, k.Topic, k.Config, k.TLS, k.SASL, at.at("kafka"))
	}
	if p := s.Pulsar; p != nil {
		checkPulsar(r, p.ServerAddr, p.Topic, p.Auth, at.at("pulsar"))
		if p.ProducerName == "" {
			r.required(at.at("pulsar.producerName"), "a name")
		}
	}
	if q := s.Sqs; q != nil {
		checkSqs(r, q.AWSRegion, q.QueueName, q.QueueOwnerAWSAccountID, q.AssumeRole, at.at("sqs"))
	}
	if s.UDSink != nil {
		containerRuns(r, s.UDSink.Container, v.vertex, role, at.at("udsink.container"))
	}
	if s.Serve != nil && !v.serving {
		r.add(at.at("serve"), Problem{Code: CodeServing, Message: "the sink serve works in a ServingPipeline only"})
	}
	if f := s.File; f != nil {
		if f.Path == "" {
			r.required(at.at("file.path"), "the path of a file")
		}
		enum(r, at.at("file.format"), CodeEnum, f.Format, v1alpha1.OutputFormatRaw, v1alpha1.OutputFormatJSON)
		rotationIsValid(r, f.Rotate, at.at("file.rotate"))
	}
	if o := s.Stdout; o != nil {
		enum(r, at.at("stdout.format"), CodeEnum, o.Format, v1alpha1.OutputFormatRaw, v1alpha1.OutputFormatJSON)
	}
	if j := s.JetStream; j != nil {
		checkNatsSink(r, j.URL, j.Subject, j.TLS, j.Auth, at.at("jetstream"))
	}
	if n := s.Nats; n != nil {
		checkNatsSink(r, n.URL, n.Subject, n.TLS, n.Auth, at.at("nats"))
	}
	checkStreamSink(r, s.Stream, at.at("stream"))
}

// minStreamBytes is the smallest log of a stream: less than that is a block or two.
const minStreamBytes = 1 << 20

func checkStreamSink(r *report, s *v1alpha1.StreamSink, at path) {
	if s == nil {
		return
	}
	if s.Listen == "" {
		r.required(at.at("listen"), "HOST:PORT or :PORT")
	} else if _, port, err := net.SplitHostPort(s.Listen); err != nil || port == "" || !validPort(port) && port != "0" {
		r.add(at.at("listen"), Problem{Code: CodeAddress, Message: fmt.Sprintf("%s is not an address to listen on", quote(s.Listen)), Expected: "HOST:PORT or :PORT"})
	}
	if s.Name == "" {
		r.required(at.at("name"), "a name for the stream")
	}
	enum(r, at.at("payload"), CodeEnum, s.Payload, v1alpha1.StreamPayloadValue, v1alpha1.StreamPayloadMessage)
	if q := s.MaxBytes; q != nil && q.CmpInt64(minStreamBytes) < 0 {
		r.add(at.at("maxBytes"), Problem{Code: CodeStreamLog, Message: fmt.Sprintf("maxBytes is %s", q), Expected: "at least 1Mi"})
	}
	if d := s.MaxAge; d != nil && d.Duration < time.Second {
		r.add(at.at("maxAge"), Problem{Code: CodeStreamLog, Message: fmt.Sprintf("maxAge is %s", d.Duration), Expected: "at least 1s"})
	}
	if t, at := s.TLS, at.at("tls"); t != nil {
		for _, half := range []struct {
			field string
			is    bool
		}{{"certSecret", t.CertSecret != nil}, {"keySecret", t.KeySecret != nil}} {
			if !half.is {
				r.missing(at.at(half.field), Problem{Code: CodeTLS, Message: "a server needs a certificate and its key, and " + half.field + " is missing", Expected: "certSecret and keySecret"})
			}
		}
	}
}

func checkNatsSink(r *report, url, subject string, tls *v1alpha1.TLS, auth *v1alpha1.NatsAuth, at path) {
	natsURL(r, url, at.at("url"))
	checkSubject(r, subject, false, at.at("subject"))
	checkTLS(r, tls, at.at("tls"))
	checkNatsAuth(r, auth, at.at("auth"))
}

func sinkRetryIsValid(r *report, v sinkView) {
	retry, at := &v.sink.RetryStrategy, v.at.at("retryStrategy")
	checkRetry(r, retry, at)
	if o := retry.OnFailure; o != nil && *o == v1alpha1.OnFailureFallback && v.sink.Fallback == nil {
		r.add(at.at("onFailure"), Problem{
			Code: CodeFallback, Message: "onFailure is fallback, and there is no fallback sink",
			Hint: "give the sink a fallback, say fallback: {log: {}}",
		})
	}
	if (retry.OnFailure != nil || retry.BackOff != nil) && v.sink.UDSink == nil {
		r.add(at, Problem{Code: CodeNoEffect, Message: "retryStrategy has no effect on a sink that is not a udsink", Hint: "built-in sinks try again until they succeed"})
	}
}

// Only a user's sink can answer that a message is for the fallback, or was a success worth telling.
func fallbackHasAUse(r *report, v sinkView) {
	if v.sink.UDSink != nil {
		return
	}
	for _, s := range []struct {
		field string
		sink  *v1alpha1.AbstractSink
	}{{"fallback", v.sink.Fallback}, {"onSuccess", v.sink.OnSuccess}} {
		if s.sink != nil {
			r.add(v.at.at(s.field), Problem{Code: CodeNoEffect, Message: fmt.Sprintf("%s receives nothing, because only a udsink sends messages there", s.field)})
		}
	}
}

func checkRetry(r *report, retry *v1alpha1.RetryStrategy, at path) {
	if o := retry.OnFailure; o != nil {
		enum(r, at.at("onFailure"), CodeEnum, *o, v1alpha1.OnFailureRetry, v1alpha1.OnFailureFallback, v1alpha1.OnFailureDrop)
	}
	b, at := retry.BackOff, at.at("backoff")
	if b == nil {
		return
	}
	atLeast(r, b.Steps, 1, at.at("steps"), CodeBackoff)
	positive(r, b.Interval, at.at("interval"))
	atLeast(r, b.Factor, 1, at.at("factor"), CodeBackoff)
	if j := b.Jitter; j != nil && (*j < 0 || *j >= 1) {
		r.add(at.at("jitter"), Problem{Code: CodeBackoff, Message: fmt.Sprintf("jitter is %v", *j), Expected: "0 to below 1"})
	}
	interval := v1alpha1.DefaultBackoffInterval
	if b.Interval != nil {
		interval = b.Interval.Duration
	}
	if b.Cap != nil && b.Cap.Duration < interval {
		r.add(at.at("cap"), Problem{Code: CodeBackoff, Message: fmt.Sprintf("cap %s is less than interval %s", b.Cap.Duration, interval), Expected: fmt.Sprintf("at least %s", interval)})
	}
}

// minFileBytes is a size below which a file would hold little more than one block.
const minFileBytes = 1 << 10

func rotationIsValid(r *report, f *v1alpha1.FileRotation, at path) {
	if f == nil {
		return
	}
	if f.Size == nil && f.Every == nil {
		r.add(at, Problem{Code: CodeRotation, Message: "rotate does not say when", Expected: "size, every, or both"})
	}
	if q := f.Size; q != nil && q.CmpInt64(minFileBytes) < 0 {
		r.add(at.at("size"), Problem{Code: CodeRotation, Message: fmt.Sprintf("size is %s", q), Expected: "at least 1Ki"})
	}
	if d := f.Every; d != nil && d.Duration < time.Second {
		r.add(at.at("every"), Problem{Code: CodeRotation, Message: fmt.Sprintf("every is %s", d.Duration), Expected: "at least 1s"})
	}
	if n := f.Keep; n != nil && *n < 1 {
		r.add(at.at("keep"), Problem{Code: CodeRotation, Message: fmt.Sprintf("keep is %d", *n), Expected: "at least 1; without keep all are kept"})
	}
}
