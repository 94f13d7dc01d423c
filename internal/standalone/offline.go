package standalone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
)

// DeadLetters are the dead letters of a data directory, through the run that uses it or, when there is none, from the directory itself.
type DeadLetters interface {
	List(ctx context.Context, pipeline, vertex string) ([]deadletter.Letter, error)
	Get(ctx context.Context, pipeline, name string) (*LetterView, error)
	Replay(ctx context.Context, pipeline, name string) error
	Drop(ctx context.Context, pipeline, name string) error
	Close()
}

// OpenDeadLetters opens the dead letters of a data directory, at an external broker if natsURL is not empty.
func OpenDeadLetters(ctx context.Context, dataDir, natsURL string) (DeadLetters, error) {
	if b, err := os.ReadFile(filepath.Join(dataDir, controlFile)); err == nil {
		var c Control
		if err := json.Unmarshal(b, &c); err == nil {
			l := &remoteLetters{c}
			if err := l.call(ctx, http.MethodGet, "status", nil); err == nil {
				return l, nil
			}
		}
	}
	if natsURL == "" {
		if _, err := os.Stat(filepath.Join(dataDir, "broker")); err != nil {
			return nil, fmt.Errorf("%s is no data directory of `levada run`: name it with --data", dataDir)
		}
	}
	return openLocal(dataDir, natsURL)
}

// remoteLetters asks the run that has the data directory.
type remoteLetters struct{ Control }

func (l *remoteLetters) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+l.Address+"/api/v1/"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+l.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return errors.New(string(bytes.TrimSpace(body)))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

func (l *remoteLetters) List(ctx context.Context, pipeline, vertex string) (letters []deadletter.Letter, err error) {
	q := url.Values{"pipeline": {pipeline}, "vertex": {vertex}}
	return letters, l.call(ctx, http.MethodGet, "deadletters?"+q.Encode(), &letters)
}

func letterPath(pipeline, name string) string {
	return "deadletters/" + url.PathEscape(pipeline) + "/" + url.PathEscape(name)
}

func (l *remoteLetters) Get(ctx context.Context, pipeline, name string) (*LetterView, error) {
	v := &LetterView{}
	return v, l.call(ctx, http.MethodGet, letterPath(pipeline, name), v)
}

func (l *remoteLetters) Replay(ctx context.Context, pipeline, name string) error {
	return l.call(ctx, http.MethodPost, letterPath(pipeline, name)+"/replay", nil)
}

func (l *remoteLetters) Drop(ctx context.Context, pipeline, name string) error {
	return l.call(ctx, http.MethodDelete, letterPath(pipeline, name), nil)
}

func (l *remoteLetters) Close() {}

// localLetters opens the store itself; nobody else has it.
type localLetters struct {
	js    jetstream.JetStream
	close []func()
}

func openLocal(dataDir, natsURL string) (_ *localLetters, err error) {
	l := &localLetters{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	release, err := broker.LockDir(dataDir)
	if err != nil {
		return nil, err
	}
	l.close = append(l.close, release)
	var conn *nats.Conn
	if natsURL != "" {
		conn, err = nats.Connect(natsURL)
	} else {
		var b *broker.Broker
		if b, err = broker.Start(broker.Config{Dir: filepath.Join(dataDir, "broker"), MaxPayload: 64 << 20}); err != nil {
			return nil, err
		}
		l.close = append(l.close, b.Stop)
		conn, err = b.Connect()
	}
	if err != nil {
		return nil, err
	}
	l.close = append(l.close, conn.Close)
	l.js, err = jetstream.New(conn)
	return l, err
}

func (l *localLetters) Close() {
	for i := len(l.close) - 1; i >= 0; i-- {
		l.close[i]()
	}
}

const lettersSuffix = "_DEADLETTERS"

// stores are the stores of all pipelines, or of one. A stream's name is {namespace}-{pipeline}_DEADLETTERS; where the namespace ends is not said in it, so the
// pipeline's name is taken from the letters.
func (l *localLetters) stores(ctx context.Context, pipeline string) (map[string]*deadletter.Store, error) {
	names := l.js.StreamNames(ctx)
	stores := map[string]*deadletter.Store{}
	for stream := range names.Name() {
		prefix, ok := strings.CutSuffix(stream, lettersSuffix)
		if !ok || pipeline != "" && !strings.HasSuffix(prefix, "-"+pipeline) {
			continue
		}
		s, err := deadletter.Open(ctx, l.js, prefix, pipeline, 1)
		if err != nil {
			return nil, err
		}
		stores[prefix] = s
	}
	return stores, names.Err()
}

func (l *localLetters) List(ctx context.Context, pipeline, vertex string) (letters []deadletter.Letter, err error) {
	stores, err := l.stores(ctx, pipeline)
	if err != nil {
		return nil, err
	}
	for _, s := range stores {
		more, err := s.List(ctx, vertex)
		if err != nil {
			return nil, err
		}
		for _, m := range more {
			if pipeline == "" || m.Pipeline == pipeline {
				letters = append(letters, m)
			}
		}
	}
	return letters, nil
}

// find returns a letter with its store and the store's prefix.
func (l *localLetters) find(ctx context.Context, pipeline, name string) (*deadletter.Letter, *deadletter.Store, string, error) {
	stores, err := l.stores(ctx, pipeline)
	if err != nil {
		return nil, nil, "", err
	}
	for prefix, s := range stores {
		letter, err := s.Get(ctx, name)
		if err == nil && letter.Pipeline == pipeline {
			return letter, s, prefix, nil
		}
		if err != nil && !errors.Is(err, deadletter.ErrNotFound) {
			return nil, nil, "", err
		}
	}
	return nil, nil, "", fmt.Errorf("%w: %s of pipeline %s", deadletter.ErrNotFound, name, pipeline)
}

func (l *localLetters) Get(ctx context.Context, pipeline, name string) (*LetterView, error) {
	letter, _, _, err := l.find(ctx, pipeline, name)
	if err != nil {
		return nil, err
	}
	v := viewOf(letter)
	return &v, nil
}

func (l *localLetters) Drop(ctx context.Context, pipeline, name string) error {
	_, s, _, err := l.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	return s.Drop(ctx, name)
}

func (l *localLetters) Replay(ctx context.Context, pipeline, name string) error {
	letter, s, prefix, err := l.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	state, err := jetstreambuffer.Bucket(ctx, l.js, prefix+"_STATE", 1)
	if err != nil {
		return err
	}
	stream := prefix + "-" + letter.Vertex + "-0"
	if _, err := l.js.Stream(ctx, stream); errors.Is(err, jetstream.ErrStreamNotFound) {
		return replay(ctx, s, letter, nil)
	}
	driver, err := jetstreambuffer.Attach(ctx, l.js, jetstreambuffer.Config{Stream: stream, State: state})
	if err != nil {
		return err
	}
	p, err := buffer.Open(ctx, driver, buffer.Options{Name: stream, TrimEvery: time.Hour})
	if err != nil {
		return err
	}
	return errors.Join(replay(ctx, s, letter, []*buffer.Partition{p}), p.Close(ctx))
}
