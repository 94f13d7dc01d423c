package vertex

import (
	"cmp"
	"path/filepath"
	"slices"
	"strings"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/topology"
)

// Shape describes the vertices and edges of a Pipeline, or the vertex of a MonoVertex, as they are recorded beside the buffers. Relative paths begin in dir.
func Shape(m any, dir string) (vertices []topology.Vertex, edges []topology.Edge) {
	switch m := m.(type) {
	case *v1alpha1.MonoVertex:
		vertices = append(vertices, shapeOf(m.Name, "monovertex", m.Spec.Source, m.Spec.Sink, dir))
	case *v1alpha1.Pipeline:
		for i := range m.Spec.Vertices {
			spec := &m.Spec.Vertices[i]
			v := shapeOf(spec.Name, kindText(spec), spec.Source, spec.Sink, dir)
			if spec.Source == nil { // what a source reads is not stored here
				v.Partitions, v.Ordered = spec.PartitionCount(), m.Spec.IsOrdered(spec)
			}
			vertices = append(vertices, v)
		}
		for i := range m.Spec.Edges {
			e := &m.Spec.Edges[i]
			edges = append(edges, topology.Edge{From: e.From, To: e.To, Condition: conditionText(e.Conditions), Discard: discards(e)})
		}
	}
	return vertices, edges
}

// shapeOf describes one vertex. What is compared with a later manifest decides whether messages in the buffers still have somewhere to go.
func shapeOf(name, kind string, source *v1alpha1.Source, sink *v1alpha1.Sink, dir string) topology.Vertex {
	v := topology.Vertex{Name: name, Kind: kind}
	if source != nil {
		v.Source = sourceEndpoint(source, name, dir)
	}
	if sink != nil {
		v.Sinks = sinkEndpoints(sink, name, dir)
	}
	return v
}

// discards reports whether an edge drops what its buffer has no room for.
func discards(e *v1alpha1.Edge) bool {
	return e.OnFull != nil && *e.OnFull == v1alpha1.OnFullDiscardLatest
}

// kindText is what a record has as the kind: part of a stored format, so the words do not change.
func kindText(v *v1alpha1.AbstractVertex) string {
	switch {
	case v.IsSource():
		return "source"
	case v.IsSink():
		return "sink"
	case v.IsReduce():
		return "reduce"
	}
	return "map"
}

// conditionText is the same for conditions that mean the same: the order of values does not count.
func conditionText(c *v1alpha1.ForwardConditions) string {
	if c == nil || c.Tags == nil {
		return ""
	}
	op := v1alpha1.LogicOperatorOr
	if c.Tags.Operator != nil {
		op = *c.Tags.Operator
	}
	values := slices.Clone(c.Tags.Values)
	slices.Sort(values)
	return string(op) + " " + strings.Join(values, ",")
}

// absolutePath makes a path comparable with one of an earlier run, which may have been started elsewhere.
func absolutePath(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// at names a place at a server without what a URL may hold of credentials.
func at(what, url string) string {
	if i := strings.LastIndexByte(url, '@'); i >= 0 {
		url = url[i+1:]
	}
	if url == "" {
		return what
	}
	return what + " at " + strings.TrimPrefix(url, "nats://")
}

// sourceEndpoint says what a source reads, under which cursor, and how: what of it another manifest may change without losing the place. ByID is set for sources
// without positions.
func sourceEndpoint(s *v1alpha1.Source, vertex, dir string) *topology.Endpoint {
	switch {
	case s.File != nil:
		how := string(cmp.Or(s.File.Format, v1alpha1.FileFormatLines))
		if s.File.CSVHeader != nil && !*s.File.CSVHeader {
			how += " without header"
		}
		return &topology.Endpoint{Type: "file", Of: absolutePath(dir, s.File.Path), Cursor: vertex, How: how}
	case s.Stdin != nil:
		return &topology.Endpoint{Type: "stdin", How: string(s.Stdin.Format)}
	case s.Generator != nil:
		return &topology.Endpoint{Type: "generator"}
	case s.HTTP != nil:
		return &topology.Endpoint{Type: "http", ByID: true}
	case s.Nats != nil:
		return &topology.Endpoint{Type: "nats", Of: at(s.Nats.Subject, s.Nats.URL), ByID: true}
	case s.JetStream != nil:
		return &topology.Endpoint{Type: "jetstream", Of: at(s.JetStream.Stream, s.JetStream.URL), Cursor: cmp.Or(s.JetStream.Consumer, "default of "+vertex), ByID: true}
	case s.Stream != nil:
		partition := cmp.Or(s.Stream.Partition, s.Stream.Stream)
		return &topology.Endpoint{Type: "stream", Of: strings.TrimSpace(s.Stream.Stream + " " + s.Stream.Query + " of " + s.Stream.Target + " as " + partition), Cursor: vertex, How: string(s.Stream.Payload)}
	case s.UDSource != nil:
		return &topology.Endpoint{Type: "udsource", ByID: true}
	}
	return &topology.Endpoint{Type: "other", ByID: true}
}

// sinkEndpoints are the sinks of a vertex by their field.
func sinkEndpoints(s *v1alpha1.Sink, vertex, dir string) map[string]topology.Endpoint {
	all := map[string]topology.Endpoint{"sink": sinkEndpoint(&s.AbstractSink, vertex, dir)}
	if s.Fallback != nil {
		all["fallback"] = sinkEndpoint(s.Fallback, vertex, dir)
	}
	if s.OnSuccess != nil {
		all["onSuccess"] = sinkEndpoint(s.OnSuccess, vertex, dir)
	}
	return all
}

// sinkEndpoint says where a sink writes to.
func sinkEndpoint(s *v1alpha1.AbstractSink, vertex, dir string) topology.Endpoint {
	switch {
	case s.File != nil:
		return topology.Endpoint{Type: "file", Of: absolutePath(dir, s.File.Path)}
	case s.Log != nil:
		return topology.Endpoint{Type: "log"}
	case s.Stdout != nil:
		return topology.Endpoint{Type: "stdout"}
	case s.Blackhole != nil:
		return topology.Endpoint{Type: "blackhole"}
	case s.JetStream != nil:
		return topology.Endpoint{Type: "jetstream", Of: at(s.JetStream.Subject, s.JetStream.URL)}
	case s.Nats != nil:
		return topology.Endpoint{Type: "nats", Of: at(s.Nats.Subject, s.Nats.URL)}
	case s.Stream != nil:
		return topology.Endpoint{Type: "stream", Of: s.Stream.Name, Cursor: vertex}
	case s.UDSink != nil:
		return topology.Endpoint{Type: "udsink"}
	}
	return topology.Endpoint{Type: "other"}
}
