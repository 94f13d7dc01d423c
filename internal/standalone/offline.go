package standalone

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/broker"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/natslink"
)

// DeadLetters are the dead letters of a data directory, through the run that uses it or, when there is none, from the directory itself.
type DeadLetters interface {
	// Page lists letters. Get, Replay and Drop take a pipeline as NAME or NAMESPACE/NAME.
	Page(ctx context.Context, q LetterQuery) (LetterPage, error)
	Get(ctx context.Context, pipeline, name string) (*LetterView, error)
	Replay(ctx context.Context, pipeline, name string) error
	Drop(ctx context.Context, pipeline, name string) error
	Close()
}

// OpenDeadLetters opens the dead letters of a data directory, at an external broker if natsURL is not empty.
func OpenDeadLetters(ctx context.Context, dataDir, natsURL string, options ...nats.Option) (DeadLetters, error) {
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
			return nil, fmt.Errorf("%s is not a data directory of `levada run`: name it with --data", dataDir)
		}
	}
	return openLocal(ctx, dataDir, natsURL, options...)
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

func openLocal(ctx context.Context, dataDir, natsURL string, options ...nats.Option) (_ *localLetters, err error) {
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
		conn, err = dial(ctx, natsURL, options...)
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

// dial connects a command to an external broker, with the checks of a run: one that Levada cannot use is refused before anything is shown or dropped.
func dial(ctx context.Context, url string, options ...nats.Option) (*nats.Conn, error) {
	log := slog.Default()
	link, err := natslink.Dial(ctx, url, log, append(options, nats.Name("levada"))...)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(natslink.CheckVersion(link.URL, link.Conn.ConnectedServerVersion()), link.CheckJetStream(ctx, log, jetstreambuffer.MinPayload)); err != nil {
		link.Conn.Close()
		return nil, err
	}
	return link.Conn, nil
}

// letterStore is a store of dead letters with what is known of its owner.
type letterStore struct {
	*deadletter.Store
	// owner is who the stream's metadata names. It is nil for a store of the old format that nobody has adopted yet.
	owner *naming.Owner
	// prefix begins the names of an old store: {namespace}-{pipeline}. Where the namespace ends is not said in it.
	prefix string
}

// stores are the dead letters of all pipelines, or of those of a name, as they are: nothing is created or changed.
func (l *localLetters) stores(ctx context.Context, pipeline string) ([]letterStore, error) {
	streams := l.js.ListStreams(ctx)
	var stores []letterStore
	for info := range streams.Info() {
		name := info.Config.Name
		tag, tagged := naming.TagOf(info.Config.Metadata)
		prefix, old := strings.CutSuffix(name, naming.OldDeadLettersSuffix)
		switch {
		case tagged && tag.Role == naming.RoleDeadLetters:
			if pipeline != "" && !named(pipeline, tag.Owner.Namespace, tag.Owner.Name) {
				continue
			}
			stores = append(stores, letterStore{deadletter.Attach(l.js, deadletter.Config{Stream: name, Pipeline: tag.Owner.Name, Tag: tag}), &tag.Owner, prefix})
		case !tagged && old && (pipeline == "" || strings.HasSuffix(prefix, "-"+pipeline[strings.LastIndexByte(pipeline, '/')+1:])):
			stores = append(stores, letterStore{deadletter.Attach(l.js, deadletter.Config{Stream: name, Pipeline: pipeline}), nil, prefix})
		}
	}
	return stores, streams.Err()
}

// find returns a letter with its store.
func (l *localLetters) find(ctx context.Context, pipeline, name string) (*deadletter.Letter, letterStore, error) {
	stores, err := l.stores(ctx, pipeline)
	if err != nil {
		return nil, letterStore{}, err
	}
	for _, s := range stores {
		letter, err := s.Get(ctx, name)
		if err == nil && (letter.Pipeline == pipeline || strings.HasSuffix(pipeline, "/"+letter.Pipeline)) {
			return letter, s, nil
		}
		if err != nil && !errors.Is(err, deadletter.ErrNotFound) {
			return nil, letterStore{}, err
		}
	}
	return nil, letterStore{}, fmt.Errorf("%w: %s of pipeline %s", deadletter.ErrNotFound, name, pipeline)
}

func (l *localLetters) Get(ctx context.Context, pipeline, name string) (*LetterView, error) {
	letter, _, err := l.find(ctx, pipeline, name)
	if err != nil {
		return nil, err
	}
	v := viewOf(letter)
	return &v, nil
}

func (l *localLetters) Drop(ctx context.Context, pipeline, name string) error {
	_, s, err := l.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	return s.Drop(ctx, name)
}

func (l *localLetters) Replay(ctx context.Context, pipeline, name string) error {
	letter, s, err := l.find(ctx, pipeline, name)
	if err != nil {
		return err
	}
	bucket, stream, tag, err := l.place(ctx, s, letter.Vertex)
	if err != nil {
		return err
	}
	if stream == "" {
		return replay(ctx, s.Store, letter, nil)
	}
	state, err := l.js.KeyValue(ctx, bucket)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", bucket, err)
	}
	driver, err := jetstreambuffer.Attach(ctx, l.js, jetstreambuffer.Config{Stream: stream, Tag: tag, State: state})
	if err != nil {
		return err
	}
	// A process somewhere else may be reading the buffer: it is written to and nothing else.
	w, err := buffer.OpenWriter(ctx, driver, buffer.Options{Name: stream})
	if err != nil {
		return errors.Join(err, driver.Close())
	}
	return errors.Join(replay(ctx, s.Store, letter, into([]*buffer.Writer{w})), w.Close())
}

// place finds the state bucket and the first partition of a vertex. stream is empty if the vertex has no buffer.
func (l *localLetters) place(ctx context.Context, s letterStore, vertex string) (bucket, stream string, tag naming.Tag, err error) {
	type candidate struct{ bucket, stream string }
	var candidates []candidate
	if s.owner != nil {
		tag = naming.Tag{Owner: *s.owner, Role: naming.RoleBuffer, Vertex: vertex}
		candidates = []candidate{
			{s.owner.State(), s.owner.Buffer(vertex, 0)}, {s.owner.OldState(), s.owner.Buffer(vertex, 0)}, {s.owner.OldState(), s.owner.OldBuffer(vertex, 0)},
		}
	} else {
		candidates = []candidate{{s.prefix + "_STATE", s.prefix + "-" + vertex + "-0"}}
	}
	for _, c := range candidates {
		found, err := l.js.Stream(ctx, c.stream)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return "", "", tag, fmt.Errorf("stream %s: %w", c.stream, err)
		}
		if _, err := tag.Check(c.stream, found.CachedInfo().Config.Metadata); err != nil {
			continue
		}
		if _, err := l.js.KeyValue(ctx, c.bucket); errors.Is(err, jetstream.ErrBucketNotFound) {
			continue
		} else if err != nil {
			return "", "", tag, fmt.Errorf("bucket %s: %w", c.bucket, err)
		}
		return c.bucket, c.stream, tag, nil
	}
	return "", "", tag, nil
}
