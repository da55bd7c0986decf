from wsol_jax.report.table import columns, heading, is_oracle, markdown, starred, summary

BOXES = {
    'split': 'test',
    'class': 'ground_truth',
    'classification': {'top1': 62.5, 'top5': 100.0},
    'skipped': {'val': 0, 'test': 2},
    'localization': [
        {
            **{'method': 'dgl', 'layer': 'stage1', 'split': 'val', 'images': 9, 'threshold': 0.1},
            **{'MaxBoxAcc': 99.0, 'threshold_from': 'val', 'chosen': False},
        },
        {
            **{'method': 'dgl', 'layer': 'stage1', 'split': 'test', 'images': 8, 'threshold': 0.1},
            **{'GTKnownLoc': 50.0, 'MaxBoxAcc': 87.55, 'MaxBoxAcc_threshold': 0.25},
            **{'threshold_from': 'val', 'chosen': False},
        },
        {
            **{'method': 'dgl', 'layer': 'stage2', 'split': 'test', 'images': 8, 'threshold': 0.3},
            **{'GTKnownLoc': 62.5, 'MaxBoxAcc': 75.0, 'MaxBoxAcc_threshold': 0.4},
            **{'threshold_from': 'val', 'chosen': True},
        },
        {
            **{'method': 'layer_cam', 'layer': 'stage1+stage2', 'split': 'test', 'images': 8},
            **{'threshold': 0.05, 'GTKnownLoc': 5.0, 'MaxBoxAcc': 12.5},
            **{'MaxBoxAcc_threshold': 0.0, 'threshold_from': 'val', 'chosen': True},
        },
    ],
}


def test_chosen_rows_and_the_oracle():
    assert summary(BOXES).split('\n') == [
        'test: 8 images, 2 skipped, top1 62.5 %, top5 100.0 %',
        'method     layer          threshold  GT-known  MaxBoxAcc*',
        '---------  -------------  ---------  --------  ----------',
        'dgl        stage2              0.30      62.5        75.0',
        'layer_cam  stage1+stage2       0.05       5.0        12.5',
        'Layer and threshold chosen on val. * best threshold on this split.',
        '',
        'Oracle: the layer that is best on test itself',
        'method     layer          threshold  MaxBoxAcc*',
        '---------  -------------  ---------  ----------',
        'dgl        stage1              0.25        87.5',
        'layer_cam  stage1+stage2       0.00        12.5',
    ]


def test_scores_of_the_split_that_was_chosen_on_are_oracles():
    rows = [{**r, 'split': 'val', 'oracle': True} for r in BOXES['localization'][1:]]
    rows[1] |= {'PxAP': 20.0}
    assert summary({**BOXES, 'split': 'val', 'localization': rows}).split('\n') == [
        'val: 8 images, top1 62.5 %, top5 100.0 %',
        'method     layer          threshold  GT-known*  MaxBoxAcc*  PxAP*',
        '---------  -------------  ---------  ---------  ----------  -----',
        'dgl        stage2              0.30       62.5        75.0   20.0',
        'layer_cam  stage1+stage2       0.05        5.0        12.5       ',
        'Layer and threshold chosen on val itself. * an oracle: best on this split.',
    ]


def test_an_oracle_is_what_a_choice_on_the_split_made_good():
    row = {'oracle': True, 'GTKnownLoc': 1.0, 'PxAP': 1.0, 'MaxBoxAcc': 1.0, 'ROAD': 1.0}
    names = list(row)[1:]
    assert [is_oracle(row, name) for name in names] == [True, False, True, False]
    assert [is_oracle({**row, 'chosen': True}, n) for n in names] == [True, True, True, False]
    del row['oracle']
    assert [is_oracle({**row, 'chosen': True}, n) for n in names] == [False, False, True, False]
    assert starred('GTKnownLoc', [row]) == 'GT-known'
    assert starred('MaxBoxAcc', [{**row, 'oracle': True}]) == 'MaxBoxAcc*'


def test_images_without_an_object_are_counted():
    metrics = {**BOXES, 'without_object': {'val': 5, 'test': 3}}
    first = summary(metrics).split('\n')[0]
    assert first == (
        'test: 8 images, 2 skipped, 3 more without an object, top1 62.5 %, top5 100.0 %'
    )


def test_intervals_and_older_tables():
    rows = [dict(row) for row in BOXES['localization']]
    for row in rows[2:]:
        row['intervals'] = {'GTKnownLoc': [row['GTKnownLoc'] - 4.75, 70.0]}
        row['protocols'] = {
            'cvpr16': {'GTKnownLoc': row['GTKnownLoc'] / 2},
            'bas': {'GTKnownLoc': 7},
        }
    assert summary({**BOXES, 'localization': rows}).split('\n') == [
        'test: 8 images, 2 skipped, top1 62.5 %, top5 100.0 %',
        'method     layer          threshold  GT-known   95 %  MaxBoxAcc*',
        '---------  -------------  ---------  --------  -----  ----------',
        'dgl        stage2              0.30      62.5  58-70        75.0',
        'layer_cam  stage1+stage2       0.05       5.0   0-70        12.5',
        'Layer and threshold chosen on val. * best threshold on this split. '
        '95 %: bootstrap interval.',
        '',
        'Oracle: the layer that is best on test itself',
        'method     layer          threshold  MaxBoxAcc*',
        '---------  -------------  ---------  ----------',
        'dgl        stage1              0.25        87.5',
        'layer_cam  stage1+stage2       0.00        12.5',
        '',
        'GT-known as older tables counted it',
        'method     layer          cvpr16  bas',
        '---------  -------------  ------  ---',
        'dgl        stage2           31.2  7.0',
        'layer_cam  stage1+stage2     2.5  7.0',
    ]


def test_without_val_the_notes_stand_all_the_same():
    row = {**BOXES['localization'][1], 'threshold': 0.125, 'threshold_from': 'config'}
    del row['chosen']
    row |= {'intervals': {'GTKnownLoc': [1, 99]}, 'blank_maps': 2}
    assert summary({**BOXES, 'localization': [row]}).split('\n')[1:] == [
        'method  layer   threshold  GT-known  95 %  MaxBoxAcc*',
        '------  ------  ---------  --------  ----  ----------',
        'dgl     stage1      0.125      50.0  1-99        87.5',
        'Threshold from config. * best threshold on this split. 95 %: bootstrap interval.',
        'Blank maps (constant or NaN), which have no box: dgl at stage1: 2.',
    ]


def test_masks_only():
    rows = [
        {'method': 'dgl', 'layer': 'a', 'PxAP': 30.0, 'chosen': True},
        {'method': 'dgl', 'layer': 'b', 'PxAP': 40.0, 'chosen': False},
    ]
    shared = {'split': 'test', 'images': 3, 'threshold': 0.5, 'threshold_from': 'val'}
    metrics = {**BOXES, 'skipped': {}, 'classification': {}}
    metrics['localization'] = [{**shared, **row} for row in rows]
    assert summary(metrics).split('\n') == [
        'test: 3 images',
        'method  layer  threshold  PxAP',
        '------  -----  ---------  ----',
        'dgl     a           0.50  30.0',
        'Layer and threshold chosen on val.',
        '',
        'Oracle: the layer that is best on test itself',
        'method  layer  threshold  PxAP',
        '------  -----  ---------  ----',
        'dgl     b                 40.0',
    ]


def test_nothing_to_score():
    shared = {'split': 'test', 'images': 0, 'threshold': 0.2, 'threshold_from': 'config'}
    metrics = {**BOXES, 'skipped': {'test': 0}, 'classification': {}}
    metrics['localization'] = [{**shared, 'method': 'cam', 'layer': k} for k in 'ab']
    assert summary(metrics).split('\n') == [
        'test: no image with boxes or masks to score',
        'method  layer  threshold',
        '------  -----  ---------',
        'cam     a           0.20',
        'cam     b           0.20',
    ]


def test_markdown():
    lines = [['method', 'score'], ['dgl', '1.0'], ['cam', '']]
    assert markdown(lines) == '| method | score |\n| --- | --- |\n| dgl | 1.0 |\n| cam |  |'


def test_columns_are_those_that_some_row_has():
    rows = [{'PxAP': 1.0}, {'Top1Loc': 1.0, 'GTKnownLoc': 2.0}]
    assert columns(rows) == ['GTKnownLoc', 'Top1Loc', 'PxAP'] and columns([{}]) == []
    assert heading('MaxBoxAccV2') == 'MaxBoxAccV2*'  # the star: an oracle


def test_faithfulness_says_on_how_many_images():
    row = {'method': 'dgl', 'layer': 'a', 'split': 'test', 'images': 12, 'threshold': 0.2}
    row |= {'chosen': True, 'threshold_from': 'val', 'GTKnownLoc': 50.0, 'MaxBoxAcc': 60.0}
    row |= {'AverageDrop': 12.3, 'ROAD': -4.5, 'faithfulness_images': 5}
    metrics = {'split': 'test', 'skipped': {}, 'classification': {}, 'localization': [row]}
    head, names, _, values, *rest = summary(metrics).split('\n')
    assert head == 'test: 12 images, drop to ROAD on 5 of them'
    assert names.split()[-2:] == ['drop', 'ROAD'] and values.split()[-2:] == ['12.3', '-4.5']
    assert not any('ROAD' in line for line in rest)  # the oracle has none
