package vertex

import (
	"testing"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/metrics"
)

// TestBlockBytesOfTheManifestReachTheRouter: an annotation that is checked and not applied would be a setting without effect.
func TestBlockBytesOfTheManifestReachTheRouter(t *testing.T) {
	for value, want := range map[string]int{"": 0, "64Ki": 64 << 10, "2000000": 2000000} {
		p := &v1alpha1.Pipeline{}
		if value != "" {
			p.Annotations = map[string]string{v1alpha1.AnnotationBlockBytes: value}
		}
		b := &builder{env: &Env{Meta: p}}
		if got := b.router(nil, &metrics.Vertex{}).BlockBytes; got != want {
			t.Errorf("block-bytes %q: the router has %d, want %d", value, got, want)
		}
	}
}
