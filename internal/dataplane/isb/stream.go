package isb

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// Stream is a buffer's partition that exists.
type Stream struct {
	Vertex    string
	Partition int
	Stream    string
}

// BufferOf returns the stream whose creation a key of a state bucket records.
func BufferOf(key string) (stream string, ok bool) {
	rest, buffer := strings.CutPrefix(key, "buffer.")
	stream, made := strings.CutSuffix(rest, ".made")
	return stream, buffer && made
}

// SourceOf returns the source vertex whose position a key of a state bucket records.
func SourceOf(key string) (vertex string, ok bool) {
	rest, ok := strings.CutPrefix(key, "source.")
	vertex, _, _ = strings.Cut(rest, ".")
	return vertex, ok
}

// Identify says which partition a stream holds: by its metadata, or for an old stream by its name. nil: it is gone.
func Identify(ctx context.Context, js jetstream.JetStream, owner naming.Owner, name string) (*Stream, error) {
	found, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tag, ok := naming.TagOf(found.CachedInfo().Config.Metadata); ok {
		return &Stream{tag.Vertex, tag.Partition, name}, nil
	}
	rest, ok := strings.CutPrefix(name, owner.Namespace+"-"+owner.Name+"-")
	at := strings.LastIndexByte(rest, '-')
	var n int
	if _, err := fmt.Sscanf(rest[at+1:], "%d", &n); !ok || at <= 0 || err != nil {
		return nil, nil
	}
	return &Stream{rest[:at], n, name}, nil
}

// Inspect counts what a stream holds.
func Inspect(ctx context.Context, js jetstream.JetStream, state jetstream.KeyValue, name string) (buffer.Contents, error) {
	driver, err := jetstreambuffer.Attach(ctx, js, jetstreambuffer.Config{Stream: name, State: state})
	if err != nil {
		return buffer.Contents{}, err
	}
	c, err := buffer.Inspect(ctx, driver)
	return c, errors.Join(err, driver.Close())
}

// Drop discards what a stream holds.
func Drop(ctx context.Context, js jetstream.JetStream, state jetstream.KeyValue, name string) (int, error) {
	driver, err := jetstreambuffer.Attach(ctx, js, jetstreambuffer.Config{Stream: name, State: state})
	if err != nil {
		return 0, err
	}
	n, err := buffer.Discard(ctx, driver)
	return n, errors.Join(err, driver.Close())
}
