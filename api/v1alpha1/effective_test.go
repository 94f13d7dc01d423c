package v1alpha1_test

import (
	"testing"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
)

func TestEffectiveMonoVertexLimits(t *testing.T) {
	l := v1alpha1.EffectiveMonoVertexLimits(&v1alpha1.MonoVertexSpec{})
	if l.ReadBatchSize != 500 || l.Concurrency != 500 || l.ReadTimeout != time.Second || l.RateLimit != nil {
		t.Errorf("%+v", l)
	}
	l = v1alpha1.EffectiveMonoVertexLimits(&v1alpha1.MonoVertexSpec{Limits: &v1alpha1.MonoVertexLimits{
		ReadBatchSize: new(uint64(7)), ReadTimeout: seconds(3), RateLimit: &v1alpha1.RateLimit{Max: new(uint64(9))},
	}})
	if l.ReadBatchSize != 7 || l.Concurrency != 7 || l.ReadTimeout != 3*time.Second || *l.RateLimit.Min != 1 {
		t.Errorf("%+v", l)
	}
}
