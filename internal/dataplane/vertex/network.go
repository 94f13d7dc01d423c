package vertex

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/httpsource"
	"github.com/levada-io/levada/internal/dataplane/source/jetstreamsource"
	"github.com/levada-io/levada/internal/dataplane/source/natssource"
)

// nats builds a source that subscribes to a subject.
func (b *builder) nats(ctx context.Context, spec *v1alpha1.Source, _ source.Positions) (source.Reader, error) {
	s := spec.Nats
	link, err := b.connect(ctx, s.URL, s.TLS, s.Auth)
	if err != nil {
		return nil, fmt.Errorf("source.nats: %w", err)
	}
	b.says("nats " + s.Subject)
	r, err := natssource.New(ctx, natssource.Config{Conn: link.Conn, Subject: s.Subject, Queue: s.Queue, Logger: b.v.logger})
	if err == nil {
		// The server refuses a subscription without an answer to it, but before it answers what comes after.
		err = link.Refused()
	}
	if err != nil {
		return nil, fmt.Errorf("source.nats: %w", err)
	}
	return r, nil
}

// jetStream builds a source that reads a stream of a NATS server.
func (b *builder) jetStream(ctx context.Context, spec *v1alpha1.Source, at source.Positions) (source.Reader, error) {
	s := spec.JetStream
	link, err := b.connect(ctx, s.URL, s.TLS, s.Auth)
	if err != nil {
		return nil, fmt.Errorf("source.jetstream: %w", err)
	}
	b.says("jetstream " + s.Stream)
	cfg := jetstreamsource.Config{
		Conn: link.Conn, Stream: s.Stream, Consumer: s.Consumer, DeliverPolicy: s.DeliverPolicy, FilterSubjects: s.FilterSubjects, ReadAhead: 2 * b.lim.batch, Logger: b.v.logger,
	}
	old := b.env.Owner.Incarnation == ""
	if old {
		cfg.OldNames = at
	}
	if cfg.Consumer == "" {
		cfg.Consumer = b.env.Owner.Consumer(b.name)
		cfg.Tag = naming.Tag{Owner: b.env.Owner, Role: naming.RoleConsumer, Vertex: b.name}
		if old { // a store that is new has nothing to do with what that consumer has acknowledged
			cfg.OldConsumer = fmt.Sprintf("numaflow-%s-%s-%s", b.env.Pipeline, b.name, s.Stream)
		}
	}
	return openJetStream(ctx, b, link, "stream "+s.Stream, func(ctx context.Context) (source.Reader, error) { return jetstreamsource.New(ctx, cfg) })
}

// defaultHTTPS is the port on which an HTTP source listens if its manifest does not say.
const defaultHTTPS = 8443

// http builds a source that listens. A port that the manifest names is taken or it is an error, since senders know it. The default one may be taken by another
// vertex on the same machine, and any of them by another process of this vertex: then any that is free is used, and announced.
func (b *builder) http(ctx context.Context, spec *v1alpha1.Source, _ source.Positions) (source.Reader, error) {
	s := spec.HTTP
	cfg, host := httpsource.Config{Vertex: b.name, Logger: b.v.logger}, b.env.Listen.Host
	chosen := listenOn(&cfg, host, s.Ports)
	if s.Auth != nil && s.Auth.Token != nil {
		token, err := b.env.Secret(s.Auth.Token.Name, s.Auth.Token.Key)
		if err != nil {
			return nil, fmt.Errorf("source.http.auth.token: %w", err)
		}
		cfg.Token = token
	}
	r, err := httpsource.New(ctx, cfg)
	switch anyPort := net.JoinHostPort(host, "0"); {
	case !errors.Is(err, syscall.EADDRINUSE):
	case b.env.Listen.Beside != nil && b.env.Listen.Beside(ctx):
		b.v.logger.Warn("port is taken, perhaps by another process of the vertex, listening on one that is free", "error", err)
		if cfg.HTTPS = anyPort; cfg.HTTP != "" {
			cfg.HTTP = anyPort
		}
		r, err = httpsource.New(ctx, cfg)
	case !chosen && b.env.Listen.Shared:
		cfg.HTTPS = anyPort
		r, err = httpsource.New(ctx, cfg)
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, fmt.Errorf("source.http: no interface of this machine has the address %s of --listen-http: %w", host, err)
	}
	if err != nil {
		return nil, fmt.Errorf("source.http (set ports.https and ports.http in the manifest to others): %w", err)
	}
	if ip := net.ParseIP(host); cfg.Token == "" && (ip == nil || !ip.IsLoopback()) {
		b.v.logger.Warn("http source takes messages from other machines without a token; set source.http.auth.token", "address", host)
	}
	what := "https" // the first address; the second is that without TLS
	for _, a := range r.Addresses() {
		b.says(what + "://" + a.String() + "/vertices/" + b.name)
		b.env.Announce(b.name, what, a.String())
		what = "http"
	}
	return r, nil
}

// listenOn sets the addresses of a source, and reports whether the manifest chose another port than the default.
func listenOn(cfg *httpsource.Config, host string, ports *v1alpha1.Ports) (chosen bool) {
	address := func(port int32) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	cfg.HTTPS = address(defaultHTTPS)
	if ports == nil {
		return false
	}
	if ports.HTTPS != nil {
		cfg.HTTPS, chosen = address(*ports.HTTPS), *ports.HTTPS != defaultHTTPS
	}
	if ports.HTTP != nil {
		cfg.HTTP = address(*ports.HTTP)
	}
	return chosen
}
