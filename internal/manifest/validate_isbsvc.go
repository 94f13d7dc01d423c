package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	kyaml "sigs.k8s.io/yaml"

	"github.com/levada-io/levada/api/v1alpha1"
)

// jetStreamVersions are those that Numaflow's controller is shipped with; an operator may be configured with others.
var jetStreamVersions = []string{
	"latest", "2.8.1", "2.8.1-alpine", "2.8.3", "2.8.3-alpine", "2.9.0", "2.9.0-alpine", "2.9.6", "2.9.8", "2.9.15",
	"2.10.3", "2.10.11", "2.10.17", "2.10.29", "2.12.7",
}

// minBufferBytes is the smallest limit of a buffer in bytes: one block of the default size is read while the next one is written.
const minBufferBytes = 1 << 20

func checkBufferService(r *report, s *v1alpha1.InterStepBufferServiceSpec) {
	js := s.JetStream
	if atMostOne(r, "spec", CodeNoJetStream, "the buffer service", []choice{{"jetstream", js != nil}, {"redis", s.Redis != nil}}) == 0 {
		r.missing("spec.jetstream", Problem{Code: CodeNoJetStream, Message: "the buffer service has neither jetstream nor redis", Expected: "jetstream with a version, or redis"})
	}
	checkRedisService(r, s.Redis, "spec.redis")
	if js == nil {
		return
	}
	const at = path("spec.jetstream")
	if js.Version == "" {
		r.required(at.at("version"), "a version of the NATS server, or latest")
	} else if !contains(jetStreamVersions, js.Version) {
		r.add(at.at("version"), Problem{
			Code: CodeJetStreamVersion, Message: fmt.Sprintf("%s is not a version that Numaflow's controller knows", quote(js.Version)),
			Expected: strings.Join(jetStreamVersions, ", "), DidYouMean: r.suggest(js.Version, jetStreamVersions),
		})
	}
	replicas := int32(v1alpha1.DefaultISBReplicas)
	if js.Replicas != nil {
		replicas = *js.Replicas
	}
	if replicas < 1 || replicas == 2 {
		r.add(at.at("replicas"), Problem{
			Code: CodeISBReplicas, Message: fmt.Sprintf("replicas is %d", replicas), Expected: "1, or 3 and more",
			Hint: "servers agree by majority, so that two are no safer than one",
		})
	}
	checkPersistence(r, js.Persistence, at.at("persistence"))
	checkBufferSettings(r, js, at.at("settings"))
	checkBufferConfig(r, js, replicas, at.at("bufferConfig"))
	serversAreSafe(r, js, replicas, at)
}

func contains(words []string, word string) bool {
	for _, w := range words {
		if w == word {
			return true
		}
	}
	return false
}

// serversAreSafe warns of a cluster that loses what it acknowledged when one thing fails.
func serversAreSafe(r *report, js *v1alpha1.JetStreamBufferService, replicas int32, at path) {
	if js.Persistence == nil {
		r.add(at, Problem{
			Code: CodeISBNoVolume, Message: "without persistence the messages of a server go with its pod",
			Hint: "persistence: {volumeSize: 20Gi} keeps them",
		})
	}
	switch {
	case replicas == 1:
		r.add(at.at("replicas"), Problem{Code: CodeISBOneServer, Message: "with one server everything stops while it restarts, and is lost with its disk", Hint: "three servers go on when one fails"})
	case replicas >= 3 && (js.Affinity == nil || js.Affinity.PodAntiAffinity == nil):
		r.add(at, Problem{
			Code: CodeISBOneMachine, Message: "nothing keeps the servers on different machines, and then one machine takes the majority with it",
			Hint: "set affinity.podAntiAffinity with topologyKey kubernetes.io/hostname",
		})
	}
}

// checkBufferSettings looks at a fragment of nats.conf, of which three keys are read.
func checkBufferSettings(r *report, js *v1alpha1.JetStreamBufferService, at path) {
	_, unknown, err := ParseServerSettings(js.Settings)
	for _, e := range errorsOf(err) {
		r.add(at, Problem{Code: CodeISBSettings, Message: e.Error(), Expected: "a fragment of nats.conf, such as max_payload: 8MB"})
	}
	for _, key := range unknown {
		r.add(at, Problem{
			Code: CodeISBSettings, Severity: SeverityWarning, Message: fmt.Sprintf("%s in settings is not read", quote(key)),
			Expected: oneOf(settingKeys), DidYouMean: r.suggest(key, settingKeys),
		})
	}
}

// errorsOf returns the errors that were joined to one.
func errorsOf(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// ParseBufferConfig reads the YAML in JetStreamBufferService.BufferConfig. Nil and empty give a config without any value.
func ParseBufferConfig(text *string) (v1alpha1.BufferConfig, error) {
	var c v1alpha1.BufferConfig
	if text == nil {
		return c, nil
	}
	js, _, err := bufferConfigJSON(*text)
	if err != nil {
		return c, err
	}
	strict, err := kjson.UnmarshalStrict(js, &c)
	return c, errors.Join(append(strict, err)...)
}

func bufferConfigJSON(text string) ([]byte, map[string]any, error) {
	checked, err := yamlText(text)
	if err != nil {
		return nil, nil, err
	}
	js, err := kyaml.YAMLToJSONStrict(checked)
	if err != nil {
		return nil, nil, err
	}
	var fields map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(js, &fields); err != nil {
		return nil, nil, errors.New("it is not a YAML object")
	}
	return js, fields, nil
}

func checkBufferConfig(r *report, js *v1alpha1.JetStreamBufferService, servers int32, at path) {
	if js.BufferConfig == nil {
		return
	}
	text, fields, err := bufferConfigJSON(*js.BufferConfig)
	if err != nil {
		n := len(r.problems)
		message := err.Error()
		m := yamlLine.FindStringSubmatch(message)
		r.add(at, Problem{Code: CodeBufferConfig, Message: "bufferConfig cannot be read: " + message[len(m[0]):], Expected: "YAML with stream, consumer, otBucket and procBucket"})
		if line, err := strconv.Atoi(m[1]); err == nil && len(r.problems) > n && r.object.locator != nil {
			if _, value := r.object.locator.find(at); value.Kind == yaml.ScalarNode && value.Style&yaml.LiteralStyle != 0 {
				r.problems[n].Line = value.Line + r.object.locator.firstLine + line
			}
		}
		return
	}
	types := typeCheck{report: r}
	types.object(fields, reflect.TypeFor[v1alpha1.BufferConfig](), at)
	var c v1alpha1.BufferConfig
	if len(types.broken) > 0 {
		text, _ = json.Marshal(fields) // without what was just reported
	}
	_ = kjson.UnmarshalCaseSensitivePreserveInts(text, &c)
	bufferStreamIsSafe(r, &c, servers, at)
}

// bufferStreamIsSafe warns, a line each, of what settings cost. They are allowed all the same.
func bufferStreamIsSafe(r *report, c *v1alpha1.BufferConfig, servers int32, at path) {
	s, at := c.Stream, at.at("stream")
	within(r, s.Retention, 0, 2, at.at("retention"), CodeBufferConfig)
	within(r, s.Storage, 0, 1, at.at("storage"), CodeBufferConfig)
	within(r, s.Replicas, 1, 5, at.at("replicas"), CodeBufferConfig)
	if n := s.MaxBytes; n != nil && *n > 0 && *n < minBufferBytes {
		r.add(at.at("maxBytes"), Problem{
			Code: CodeBufferConfig, Message: fmt.Sprintf("maxBytes is %d, which has no room for two blocks: writers would wait and nothing would move", *n),
			Expected: fmt.Sprintf("at least %d, or -1 for no limit", minBufferBytes),
		})
	}
	notNegative(r, s.MaxAge, at.at("maxAge"))
	notNegative(r, s.Duplicates, at.at("duplicates"))
	if s.Retention != nil {
		switch *s.Retention {
		case 1:
			r.add(at.at("retention"), Problem{Code: CodeRetention, Message: "retention 1 (interest) deletes at once what arrives while its reader is not set up yet"})
		case 2:
			r.add(at.at("retention"), Problem{Code: CodeRetention, Message: "retention 2 (work queue) deletes what is acknowledged, so that nothing can be replayed or looked at"})
		}
	}
	if s.MaxAge != nil && s.MaxAge.Duration > 0 {
		r.add(at.at("maxAge"), Problem{Code: CodeMaxAge, Message: fmt.Sprintf("maxAge deletes what is older than %s, also what was not read yet", s.MaxAge.Duration), Hint: "a pipeline that stands still for longer loses messages; 0s keeps them"})
	}
	if s.Storage != nil && *s.Storage == 1 {
		r.add(at.at("storage"), Problem{Code: CodeMemoryStorage, Message: "storage 1 (memory) loses the messages of a server that restarts"})
	}
	if discard := fmt.Sprint(s.Discard); s.Discard != nil {
		switch strings.ToLower(discard) {
		case "old", "0", "discardold":
			r.add(at.at("discard"), Problem{Code: CodeDiscardOld, Message: "discard old makes room in a full buffer by deleting what was not read yet", Hint: "discard: new pushes back instead"})
		case "new", "1", "discardnew":
		default:
			r.add(at.at("discard"), Problem{Code: CodeBufferConfig, Message: fmt.Sprintf("discard is %s", quote(discard)), Expected: "new or old"})
		}
	}
	if s.Replicas != nil && *s.Replicas < 3 && *s.Replicas > 0 && servers >= 3 {
		r.add(at.at("replicas"), Problem{Code: CodeStreamReplicas, Message: fmt.Sprintf("replicas %d stores a message on %d of the %d servers, so that one failure can lose it", *s.Replicas, *s.Replicas, servers)})
	}
	ackWait := cmp.Or(durationOf(c.Consumer.AckWait), time.Minute)
	positive(r, c.Consumer.AckWait, at.parent().at("consumer.ackWait"))
	if s.Duplicates != nil && s.Duplicates.Duration >= 0 && s.Duplicates.Duration < ackWait {
		r.add(at.at("duplicates"), Problem{
			Code: CodeDuplicates, Message: fmt.Sprintf("duplicates %s is shorter than ackWait %s: a message that is delivered again may count twice", s.Duplicates.Duration, ackWait),
			Expected: fmt.Sprintf("at least %s", ackWait),
		})
	}
}

// blocksFit reports blocks of a pipeline that its buffers have no room for. The service itself is checked for blocks of the default size.
func blocksFit(r *report, s *v1alpha1.InterStepBufferService) {
	block, ok := v1alpha1.BlockBytes(r.object.Manifest)
	if !ok || s.Spec.JetStream == nil {
		return
	}
	c, err := ParseBufferConfig(s.Spec.JetStream.BufferConfig)
	if err != nil || c.Stream.MaxBytes == nil {
		return
	}
	if n := *c.Stream.MaxBytes; n >= minBufferBytes && n < 2*block {
		r.add(path("metadata.annotations").key(v1alpha1.AnnotationBlockBytes), Problem{
			Code: CodeAnnotationValue, Message: fmt.Sprintf("blocks of %d bytes do not fit twice into the buffers of InterStepBufferService %s, whose maxBytes is %d: writers would wait and nothing would move", block, s.Name, n),
			Expected: fmt.Sprintf("at most %d, or a maxBytes of at least %d", n/2, 2*block),
		})
	}
}

func durationOf(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}
