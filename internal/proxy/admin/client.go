package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/levada-io/levada/internal/proxy/observe"
)

// Client asks a proxy at its administrative address.
type Client struct {
	// Note is called with what the proxy says of a filter that may match nothing, if that is set.
	Note func(string)

	base  string
	name  string // of the proxy in errors: base, or the socket, which has no URL
	token string
	http  *http.Client
}

// NewClient makes a client of host:port, unix:PATH or a URL. The token may be empty.
func NewClient(address, token string) (*Client, error) {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		if path == "" {
			return nil, fmt.Errorf("%q names no socket: expected unix:PATH, such as unix:/run/levada/admin.sock", address)
		}
		var d net.Dialer
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
		return &Client{base: "http://localhost", name: address + " ", token: token, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
	}
	text := address
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%q is not an admin address; expected host:port, such as 127.0.0.1:9901", address)
	}
	return &Client{base: u.Scheme + "://" + u.Host, name: u.Scheme + "://" + u.Host, token: token, http: http.DefaultClient}, nil
}

const answerTime = 10 * time.Second

// Overview is the state now.
func (c *Client) Overview(ctx context.Context) (*Overview, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	r, err := c.ask(ctx, http.MethodGet, "/overview", nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	o := &Overview{}
	if err := json.NewDecoder(io.LimitReader(r, 64<<20)).Decode(o); err != nil {
		return nil, fmt.Errorf("%s/overview is not what a proxy answers: %w", c.name, err)
	}
	return o, nil
}

// Tap calls each for every line that passes the filter, with what it says, until ctx ends or each fails. That the proxy ended it is io.ErrUnexpectedEOF.
func (c *Client) Tap(ctx context.Context, f observe.Filter, each func(line []byte, e *observe.Event) error) error {
	q := url.Values{}
	for name, value := range map[string]string{"route": f.Route, "path": f.Path, "endpoint": f.Endpoint, "reason": f.Reason, "code": f.Status} {
		if value != "" {
			q.Set(name, value)
		}
	}
	r, err := c.ask(ctx, http.MethodGet, "/tap", q)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e := &observe.Event{}
		if err := json.Unmarshal(lines.Bytes(), e); err != nil {
			return fmt.Errorf("%s/tap is not what a proxy answers: %w", c.name, err)
		}
		if err := each(lines.Bytes(), e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%s/tap: %w", c.name, err)
	}
	return io.ErrUnexpectedEOF
}

// ErrUndrained is what Drain returns when the drain was called off.
var ErrUndrained = errors.New("the drain was called off")

// Undrain calls a drain off, or makes a proxy that has drained serve again.
func (c *Client) Undrain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	r, err := c.ask(ctx, http.MethodPost, "/undrain", nil)
	if err != nil {
		return err
	}
	return r.Close()
}

// Drain drains the proxy, tells each how far that has come every second, and returns nil when it is over. That the proxy ended before is
// io.ErrUnexpectedEOF. The drain goes on if ctx ends.
func (c *Client) Drain(ctx context.Context, each func(Drain)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(answerTime, func() { cancel(fmt.Errorf("%s/drain: the proxy has said nothing for %v", c.name, answerTime)) })
	defer silent.Stop()
	failed := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	r, err := c.ask(ctx, http.MethodPost, "/drain", url.Values{"wait": {"true"}})
	if err != nil {
		return failed(err)
	}
	defer func() { _ = r.Close() }()
	for lines := json.NewDecoder(r); ; silent.Reset(answerTime) {
		var state Drain
		var broken net.Error
		switch err := lines.Decode(&state); {
		case err == nil:
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &broken):
			return failed(io.ErrUnexpectedEOF)
		default:
			return failed(fmt.Errorf("%s/drain is not what a proxy answers: %w", c.name, err))
		}
		if each(state); state.Drained {
			return nil
		}
		if !state.Draining {
			return ErrUndrained
		}
	}
}

func (c *Client) ask(ctx context.Context, method, path string, q url.Values) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the proxy (--admin): %w", errors.Unwrap(err))
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 2048))
		_ = response.Body.Close()
		return nil, fmt.Errorf("%s%s answers with %s: %s", c.name, path, response.Status, strings.TrimSpace(string(text)))
	}
	if note := response.Header.Get(noteHeader); note != "" && c.Note != nil {
		c.Note(note)
	}
	return response.Body, nil
}
