package logsink_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/logsink"
	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
	"github.com/levada-io/levada/internal/flow"
)

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		var out bytes.Buffer
		return sinktest.Harness{
			Open: func(t *testing.T) sink.Writer { return open(t, &out) },
			Delivered: func(t *testing.T) (got []string) {
				for line := range strings.Lines(out.String()) {
					payload, _, _ := strings.Cut(strings.TrimPrefix(line, "out: Payload - "), " Keys - ")
					got = append(got, payload)
				}
				return got
			},
		}
	})
}

type writer interface{ Write([]byte) (int, error) }

func open(t *testing.T, out writer) *logsink.Writer {
	t.Helper()
	w, err := logsink.New(logsink.Config{Out: out, Prefix: "out: "})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestLine(t *testing.T) {
	var out bytes.Buffer
	w := open(t, &out)
	headers := flow.AppendHeader(flow.AppendHeader(nil, "a", "1"), "b", "2")
	_, err := w.Write(t.Context(), &flow.Block{Messages: []flow.Message{
		{ID: "in/0/1", Value: []byte("hé\n\x1b[31m\xff"), Keys: []string{"k1", "k2"}, EventTime: 1_700_000_000_123_456_789, Headers: headers},
		{},
	}})
	const want = `out: Payload - hé\n\x1b[31m\xff Keys - [k1 k2] EventTime - 1700000000123 Headers - {a: 1, b: 2} ID - in/0/1` + "\n" +
		"out: Payload -  Keys - [] EventTime - 0 Headers - {} ID - \n"
	if err != nil || out.String() != want {
		t.Fatalf("%v\ngot  %s\nwant %s", err, out.String(), want)
	}
}

type broken struct{}

var errBroken = errors.New("broken pipe")

func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestErrors(t *testing.T) {
	if _, err := open(t, broken{}).Write(t.Context(), sinktest.Block("in/0", 1, 1, 0)); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if _, err := logsink.New(logsink.Config{}); err == nil || !strings.Contains(err.Error(), "out: required") {
		t.Fatal(err)
	}
}
