package generatorsource_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/generatorsource"
	"github.com/levada-io/levada/internal/dataplane/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg generatorsource.Config) *generatorsource.Reader {
	t.Helper()
	if cfg.Positions == nil {
		cfg.Positions = &sourcetest.Positions{}
	}
	r, err := generatorsource.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestConformance(t *testing.T) {
	sourcetest.Run(t, func(*testing.T) sourcetest.Harness {
		positions := &sourcetest.Positions{}
		return sourcetest.Harness{
			Made:   200,
			Finite: true,
			Open: func(t *testing.T) source.Reader {
				return open(t, generatorsource.Config{RPU: 40, Duration: time.Millisecond, Count: 200, Positions: positions})
			},
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t, generatorsource.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second-time.Millisecond)
		defer cancel()
		n := 0
		for {
			b, err := r.Read(ctx, 3)
			if errors.Is(err, context.DeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			n += len(b.Messages)
		}
		if n != 50 {
			t.Fatalf("%d messages in ten seconds, want 5 a second", n)
		}
		time.Sleep(time.Minute) // a slow reader
		if b, err := r.Read(t.Context(), 1000); err != nil || len(b.Messages) != 5 {
			t.Fatalf("%v messages at once after a pause, %v", b, err)
		}
	})
}

func TestContent(t *testing.T) {
	value := uint64(42)
	r := open(t, generatorsource.Config{RPU: 100, MsgSize: 100, KeyCount: 3, Value: &value, Jitter: time.Hour, Partition: "7"})
	b, err := r.Read(t.Context(), 6)
	if err != nil {
		t.Fatal(err)
	}
	early := 0
	for i, m := range b.Messages {
		var got struct {
			ID      string
			Value   uint64
			Padding string
		}
		if err := json.Unmarshal(m.Value, &got); err != nil || len(m.Value) != 100 || got.Value != 42 {
			t.Fatalf("%s: %v", m.Value, err)
		}
		if want := "key-" + string(rune('0'+i%3)) + "-7"; m.Keys[0] != want {
			t.Fatalf("key %v, want %s", m.Keys, want)
		}
		if late := m.Ingested - m.EventTime; late < 0 || late >= int64(time.Hour) {
			t.Fatalf("event time lies %v before the making", time.Duration(late))
		} else if late > 0 {
			early++
		}
	}
	if early == 0 {
		t.Fatal("no jitter")
	}
	if got := string(b.Messages[5].Value); !strings.HasPrefix(got, `{"id":"7-6","value":42,"padding":"xx`) {
		t.Fatal(got)
	}

	b, err = open(t, generatorsource.Config{MsgSize: 3}).Read(t.Context(), 1)
	if err != nil || bytes.Contains(b.Messages[0].Value, []byte("padding")) || !json.Valid(b.Messages[0].Value) {
		t.Fatalf("%s, %v", b.Messages[0].Value, err)
	}
	b, err = open(t, generatorsource.Config{ValueBlob: []byte{1, 2, 3}}).Read(t.Context(), 2)
	if err != nil || !bytes.Equal(b.Messages[1].Value, []byte{1, 2, 3}) {
		t.Fatalf("%v, %v", b, err)
	}
}

func TestErrors(t *testing.T) {
	p := &sourcetest.Positions{}
	for words, cfg := range map[string]generatorsource.Config{
		"positions: required": {},
		"rpu: -1":             {Positions: p, RPU: -1},
		"duration: -1s":       {Positions: p, Duration: -time.Second},
		"msgSize: -1":         {Positions: p, MsgSize: -1},
		"keyCount: -1":        {Positions: p, KeyCount: -1},
		"jitter: -1s":         {Positions: p, Jitter: -time.Second},
	} {
		if _, err := generatorsource.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), words) {
			t.Fatalf("%v does not say %q", err, words)
		}
	}
	if err := p.Save(t.Context(), "0", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := generatorsource.New(t.Context(), generatorsource.Config{Positions: p}); err == nil || !strings.Contains(err.Error(), "saved position") {
		t.Fatal(err)
	}
	r := open(t, generatorsource.Config{Count: 1})
	_, _ = r.Read(t.Context(), 1)
	if _, err := r.Read(t.Context(), 1); err != io.EOF {
		t.Fatal(err)
	}
}
