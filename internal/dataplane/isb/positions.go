package isb

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Positions keeps how far the partitions of a source are; it implements source.Positions.
type Positions struct {
	service Service
	state   State
	prefix  string
}

// PositionsOf are the positions of a source vertex.
func PositionsOf(service Service, state State, vertex string) Positions {
	return Positions{service, state, keySource + vertex + "."}
}

// SourceOf returns the source vertex whose position a key of a state records.
func SourceOf(key string) (vertex string, ok bool) {
	rest, ok := strings.CutPrefix(key, keySource)
	vertex, _, _ = strings.Cut(rest, ".")
	return vertex, ok
}

func (p Positions) key(partition string) string {
	if partition == "" {
		return p.prefix + "_" // no other partition gives this one
	}
	var b strings.Builder
	for _, c := range []byte(partition) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "_%02x", c) // keys allow few characters
		}
	}
	return p.prefix + b.String()
}

// Load implements source.Positions.
func (p Positions) Load(ctx context.Context, partition string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return Retry(ctx, p.service, slog.New(slog.DiscardHandler), "the position of "+partition, func(ctx context.Context) ([]byte, error) {
		value, _, err := p.state.Get(ctx, p.key(partition))
		return value, err
	})
}

// Save implements source.Positions.
func (p Positions) Save(ctx context.Context, partition string, position []byte) error {
	_, err := Retry(ctx, p.service, slog.New(slog.DiscardHandler), "saving the position of "+partition, func(ctx context.Context) (struct{}, error) {
		ctx, cancel := context.WithTimeout(ctx, saveTimeout)
		defer cancel()
		return struct{}{}, p.state.Put(ctx, p.key(partition), position)
	})
	return err
}

// loadTimeout is how long a start waits for a broker that does not answer.
const loadTimeout = time.Minute

// saveTimeout bounds an attempt to save a position: a request can go with a broker that is killed, and would wait for as long as the caller may.
const saveTimeout = 3 * time.Second
