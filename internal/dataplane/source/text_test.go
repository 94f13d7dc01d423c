package source_test

import (
	"context"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

type one struct {
	source.Reader
	message flow.Message
}

func (o one) Read(context.Context, int) (*source.Batch, error) {
	return &source.Batch{ByID: true, Messages: []flow.Message{{ID: "plain"}, o.message}}, nil
}

// TestTextOfMessagesIsUTF8: other bytes would end the function that gets them with an error of its protobuf library.
func TestTextOfMessagesIsUTF8(t *testing.T) {
	m := flow.Message{ID: "x", Keys: []string{"k", "\xff"}, Value: []byte("\xff")}
	m.Headers = flow.AppendHeader(m.Headers, "X-Name", "M\xfcller")
	m.Headers = flow.AppendHeader(m.Headers, "X-Other", "1")
	var dropped []string
	b, err := source.ValidText(one{message: m}, func(name string) { dropped = append(dropped, name) }).Read(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	got := b.Messages[1]
	if _, there := got.Headers.Get("X-Name"); there || strings.Join(dropped, " ") != "X-Name" {
		t.Fatalf("%q, dropped %q", got.Headers, dropped)
	}
	if other, _ := got.Headers.Get("X-Other"); other != "1" || strings.Join(got.Keys, " ") != "k %FF" || string(got.Value) != "\xff" || m.Keys[1] != "\xff" {
		t.Fatalf("%+v", got)
	}
}

// partReader takes acknowledgements of parts.
type partReader struct {
	source.Reader
	parts int
}

func (p *partReader) AckPart(context.Context, *source.Batch, int, int) error {
	p.parts++
	return nil
}

// A reader that was wrapped without its AckPart made no progress within a batch: after each restart a slow function began the batch again.
func TestValidTextKeepsAcknowledgementsOfParts(t *testing.T) {
	p := &partReader{}
	parts, ok := source.ValidText(p, nil).(source.PartAcker)
	if !ok {
		t.Fatal("the wrapped reader takes no parts")
	}
	if err := parts.AckPart(t.Context(), nil, 0, 1); err != nil || p.parts != 1 {
		t.Fatalf("%v, %d parts", err, p.parts)
	}
	if _, ok := source.ValidText(struct{ source.Reader }{p}, nil).(source.PartAcker); ok {
		t.Fatal("a reader without parts seems to take them")
	}
}
