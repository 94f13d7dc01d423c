package standalone_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestMessageAboveMaxPayloadHoldsUpNobody: a message that the broker of a jetstream sink never takes is a dead letter, and the others are delivered. It was published again without end.
func TestMessageAboveMaxPayloadHoldsUpNobody(t *testing.T) {
	s := newSite(t)
	url, js := startBroker(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUT", Subjects: []string{"out"}, MaxMsgSize: 1000}); err != nil {
		t.Fatal(err)
	}
	input := numbered("line", 40)
	input[17] = strings.Repeat("x", 5000)
	s.write(t, "data.txt", input...)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := s.runUntil(ctx, t, fmt.Sprintf(`
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  vertices:
    - {name: in, source: {file: {path: data.txt}}}
    - {name: out, sink: {jetstream: {url: %q, subject: out}}}
  edges: [{from: in, to: out}]
`, url))
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it does not come to an end: %v\n%s", err, s.logs)
	}
	var want []string
	for i, l := range input {
		if i != 17 {
			want = append(want, "out "+l)
		}
	}
	if got := stored(t, js, "OUT"); !slices.Equal(got, want) {
		t.Errorf("%d messages are in the stream, want %d", len(got), len(want))
	}
	if !strings.Contains(s.logs.String(), "message dead-lettered") || !strings.Contains(s.logs.String(), "refused") {
		t.Error(s.logs)
	}
}
