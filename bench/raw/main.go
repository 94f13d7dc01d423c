// Raw moves messages in frames of 500 through two JetStream streams with nothing in between: what no pipeline on the same broker can be cheaper than.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/levada-io/levada/internal/broker"
)

const frame, inFlight = 500, 8

func main() {
	dir := flag.String("dir", "", "where to store")
	messages := flag.Int("messages", 1_000_000, "how many")
	size := flag.Int("size", 256, "bytes of each")
	interval := flag.Duration("sync-interval", 0, "sync interval; 0 is before each acknowledgement")
	flag.Parse()
	if err := run(*dir, *messages, *size, *interval); err != nil {
		fmt.Fprintln(os.Stderr, "raw:", err)
		os.Exit(1)
	}
}

func run(dir string, messages, size int, interval time.Duration) error {
	b, err := broker.Start(broker.Config{Dir: dir, SyncInterval: interval, MaxPayload: 8 << 20})
	if err != nil {
		return err
	}
	defer b.Stop()
	conn, err := b.Connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for _, name := range []string{"one", "two"} {
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{name}, Discard: jetstream.DiscardNew}); err != nil {
			return err
		}
	}
	frames := messages / frame
	var group errgroup.Group
	group.Go(func() error {
		payload := make([]byte, frame*size)
		for i := 0; i < frames; i += inFlight {
			var acks []jetstream.PubAckFuture
			for k := i; k < min(i+inFlight, frames); k++ {
				ack, err := js.PublishAsync("one", payload, jetstream.WithMsgID(fmt.Sprint("one-", k)))
				if err != nil {
					return err
				}
				acks = append(acks, ack)
			}
			if err := wait(acks); err != nil {
				return err
			}
		}
		return nil
	})
	group.Go(func() error {
		return each(ctx, js, "one", frames, func(m jetstream.Msg, i int) error {
			ack, err := js.PublishAsync("two", m.Data(), jetstream.WithMsgID(fmt.Sprint("two-", i)))
			if err != nil {
				return err
			}
			if err := wait([]jetstream.PubAckFuture{ack}); err != nil {
				return err
			}
			return m.Ack()
		})
	})
	group.Go(func() error {
		return each(ctx, js, "two", frames, func(m jetstream.Msg, _ int) error { return m.Ack() })
	})
	return group.Wait()
}

func wait(acks []jetstream.PubAckFuture) error {
	for _, a := range acks {
		select {
		case <-a.Ok():
		case err := <-a.Err():
			return err
		}
	}
	return nil
}

func each(ctx context.Context, js jetstream.JetStream, stream string, frames int, do func(jetstream.Msg, int) error) error {
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: stream, AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		return err
	}
	it, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(256, 2<<20))
	if err != nil {
		return err
	}
	defer it.Stop()
	for i := range frames {
		m, err := it.Next()
		if err != nil {
			return err
		}
		if err := do(m, i); err != nil {
			return err
		}
	}
	return nil
}
