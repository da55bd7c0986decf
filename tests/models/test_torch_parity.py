"""Plain torch networks with random weights, loaded by ours: the same numbers come out."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from wsol_jax.models import load_network

torch = pytest.importorskip('torch')
nn = torch.nn
F = torch.nn.functional

SIZE = 107  # odd at several depths, so that floor and ceil differ
CLASSES = 6


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(before, width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(before, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def shortcut(before, after, stride):
    if before == after and stride == 1:
        return nn.Identity()
    conv = nn.Conv2d(before, after, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after))


class ResNet(nn.Module):
    def __init__(self, block, counts, width, strides):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, (count, stride) in enumerate(zip(counts, strides, strict=True)):
            blocks = []
            for number in range(count):
                blocks.append(block(before, width * 2**stage, 1 if number else stride))
                before = width * 2**stage * block.expansion
            setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(before, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3))), x


class Fire(nn.Module):
    def __init__(self, before, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self):
        super().__init__()

        def pool():
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        first = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool()]
        second = [Fire(64, 16, 64), Fire(128, 16, 64), pool()]
        third = [Fire(128, 32, 128), Fire(256, 32, 128), pool()]
        fourth = [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
        self.features = nn.Sequential(*first, *second, *third, *fourth)
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(512, CLASSES, 1), nn.ReLU())

    def forward(self, x):
        x = self.classifier(self.features(x))
        return x.mean((2, 3)), x


class VGG16(nn.Module):
    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for group in ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3):
            for width in group:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers[:-1])
        self.conv6 = nn.Conv2d(512, 1024, 3, padding=1)
        self.fc = nn.Linear(1024, CLASSES)

    def forward(self, x):
        x = F.relu(self.conv6(self.features(x)))
        return self.fc(x.mean((2, 3))), x


class MobileNet(nn.Module):
    widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

    def __init__(self, strides=(1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
        super().__init__()
        self.conv_0 = nn.Conv2d(3, 32, 3, 2)
        for i in range(1, 14):
            before, after = self.widths[i - 1], self.widths[i]
            depthwise = nn.Conv2d(before, before, 3, strides[i - 1], groups=before)
            setattr(self, f'dw_{i}', depthwise)
            setattr(self, f'pw_{i}', nn.Conv2d(before, after, 1))
        self.classifier = nn.Conv2d(1024, CLASSES, 1)

    def forward(self, x):
        x = F.relu6(tensorflow_same(self.conv_0, x))
        for i in range(1, 14):
            x = F.relu6(tensorflow_same(getattr(self, f'dw_{i}'), x))
            x = F.relu6(getattr(self, f'pw_{i}')(x))
        return self.classifier(x.mean((2, 3), keepdim=True)).flatten(1), x


def tensorflow_same(conv, x):
    stride, pads = conv.stride[0], []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // stride) - 1) * stride + 3 - length, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads))


class TimmMobileNet(nn.Module):
    """Under timm's names: batch normalisation, and a pixel of padding on each side."""

    def __init__(self):
        super().__init__()
        widths, number = MobileNet.widths, 0
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.blocks = nn.ModuleList()
        for stage, count in enumerate((1, 2, 2, 6, 2)):
            self.blocks.append(nn.ModuleList())
            for place in range(count):
                block, stride = nn.Module(), 2 if stage and not place else 1
                before, after = widths[number], widths[number + 1]
                block.conv_dw = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
                block.bn1 = nn.BatchNorm2d(before)
                block.conv_pw = nn.Conv2d(before, after, 1, bias=False)
                block.bn2 = nn.BatchNorm2d(after)
                self.blocks[-1].append(block)
                number += 1
        self.classifier = nn.Linear(1024, CLASSES)

    def forward(self, x):
        x = F.relu6(self.bn1(self.conv_stem(x)))
        for block in (block for stage in self.blocks for block in stage):
            x = F.relu6(block.bn1(block.conv_dw(x)))
            x = F.relu6(block.bn2(block.conv_pw(x)))
        return self.classifier(x.mean((2, 3))), x


class Unit(nn.Module):
    def __init__(self, before, after, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class BlockA(nn.Module):
    def __init__(self, before, pool):
        super().__init__()
        self.branch1x1 = Unit(before, 64, 1)
        self.branch5x5_1 = Unit(before, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(before, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(before, pool, 1)

    def forward(self, x):
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), five, three, pooled], 1)


class BlockB(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch3x3 = Unit(288, 384, 3, padding=1)
        self.branch3x3dbl_1 = Unit(288, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 1, 1)], 1)


class BlockC(nn.Module):
    def __init__(self, width):
        super().__init__()
        row, column = {'kernel': (1, 7), 'padding': (0, 3)}, {'kernel': (7, 1), 'padding': (3, 0)}
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1 = Unit(768, width, 1)
        self.branch7x7_2 = Unit(width, width, **row)
        self.branch7x7_3 = Unit(width, 192, **column)
        self.branch7x7dbl_1 = Unit(768, width, 1)
        self.branch7x7dbl_2 = Unit(width, width, **column)
        self.branch7x7dbl_3 = Unit(width, width, **row)
        self.branch7x7dbl_4 = Unit(width, width, **column)
        self.branch7x7dbl_5 = Unit(width, 192, **row)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x):
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_1(x)
        for number in range(2, 6):
            double = getattr(self, f'branch7x7dbl_{number}')(double)
        pooled = self.branch_pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.branch1x1(x), single, double, pooled], 1)


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, 1)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c = BlockA(192, 32), BlockA(256, 64)
        self.Mixed_5d, self.Mixed_6a = BlockA(288, 64), BlockB()
        self.Mixed_6b, self.Mixed_6c = BlockC(128), BlockC(160)
        self.Mixed_6d, self.Mixed_6e = BlockC(160), BlockC(192)
        self.Mixed_6f = nn.Conv2d(768, 1024, 3, padding=1)
        self.Mixed_6g = nn.Conv2d(1024, 1024, 3, padding=1)
        self.fc = nn.Linear(1024, CLASSES)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        for name in ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e'):
            x = getattr(self, f'Mixed_{name}')(x)
        x = F.relu(self.Mixed_6g(F.relu(self.Mixed_6f(x))))
        return self.fc(x.mean((2, 3))), x


NETWORKS = {
    'resnet18': (lambda: ResNet(BasicBlock, (2, 2, 2, 2), 64, (1, 2, 2, 2)), {}),
    'resnet50': (
        lambda: ResNet(Bottleneck, (3, 4, 6, 3), 16, (1, 2, 1, 1)),
        {'width': 16, 'output_stride': 8},
    ),
    'squeezenet1_1': (SqueezeNet, {}),
    'vgg16': (VGG16, {}),
    'mobilenet_v1': (MobileNet, {}),
    'mobilenet_v1 as in timm': (TimmMobileNet, {}),
    'resnet10 as in BAS': (
        lambda: ResNet(BasicBlock, (1, 1, 1, 1), 16, (1, 2, 1, 2)),
        {'width': 16, 'strides': (1, 2, 1, 2)},
    ),
    'mobilenet_v1 as in BAS': (
        lambda: MobileNet((1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1)),
        {'output_stride': 16},
    ),
    'inception_v3': (Inception, {'padding': 'torchvision'}),
}


def randomise(module):
    """Batch statistics and biases that would show if they were mixed up."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                tensor.data.uniform_(-0.3, 0.3)
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                layer.bias.data.uniform_(-0.3, 0.3)
    return module.eval()


def close(ours, theirs):
    tolerance = 1e-4 * float(np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_same_numbers_as_torch(name, tmp_path):
    make, options = NETWORKS[name]
    torch.manual_seed(0)
    theirs = randomise(make())
    path = tmp_path / 'net.safetensors'
    save_file({k: v.numpy() for k, v in theirs.state_dict().items()}, path)
    network = load_network(name.split()[0], path, **options)
    assert network.num_classes == CLASSES

    inputs = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        logits, last = theirs(torch.from_numpy(inputs).permute(0, 3, 1, 2))
    assert logits.std() > 1e-2
    got, endpoints = jax.jit(network.apply)(network.state, inputs)
    close(endpoints[network.last_layer], last.permute(0, 2, 3, 1).numpy())
    close(got, logits.numpy())
